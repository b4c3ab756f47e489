"""Answers of a detector in COCO's results format, which COCO's own code and its server read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mobilemamba.data.coco_masks import encode
from mobilemamba.errors import DataError
from mobilemamba.files import write_text_atomic
from mobilemamba.text import printable

_KEYS = ("image_id", "category_id", "bbox", "score")


def result_rows(image_id: int, found: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each object that was found in a picture.

    Args:
        image_id: What the annotations call the picture.
        found: ``boxes`` (n, 4), left, top, right and bottom in pixels of the original picture, ``labels`` (n,) and
            ``scores`` (n,), and perhaps ``masks`` (n, H, W) bool of the original picture.
        category_ids: What the annotations call the classes, in the order of the labels.
    """
    boxes, labels, scores = (found[name].tolist() for name in ("boxes", "labels", "scores"))
    rows: list[dict[str, Any]] = []
    for (left, top, right, bottom), label, score in zip(boxes, labels, scores, strict=True):
        box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        rows.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    for row, mask in zip(rows, found.get("masks", ()), strict=False):
        row["segmentation"] = encode(mask.cpu().numpy())
    return rows


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of :func:`result_rows`, one a line.

    Raises:
        OSError: If the file cannot be written.
    """
    write_text_atomic(str(path), "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in COCO's results format.

    Raises:
        DataError: If it is none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}): mend it or give another") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(path)} is no complete JSON ({error}): write it again") from error
    if not isinstance(rows, list):
        raise DataError(f"{printable(path)} is no list of results, as COCO's format has them: give another file")
    for number, row in enumerate(rows):
        missing = [key for key in _KEYS if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"{printable(path)}: row {number} lacks {', '.join(missing)}; give COCO's results format")
    return rows
