"""Reading and checking a COCO-style JSON: pictures, categories, and objects with their boxes."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilemamba.data.arrays import find, numbers, repeated, whole
from mobilemamba.data.blobs import Blobs, Texts
from mobilemamba.data.coco_masks import pack
from mobilemamba.data.objects import Objects
from mobilemamba.errors import DataError
from mobilemamba.text import printable

#: Pixels by which a box may extend beyond its picture, as annotators round.
ROUNDING = 2.0
_KEYS = ("image_id", "category_id", "bbox")
_LONGEST = 80  # characters of a value in a message


class CocoFile(NamedTuple):
    """Content of a file; a label is the index of a category in the order of the ids.

    Attributes:
        categories: Id -> name, in the order of the ids.
        objects: The objects; the paths of their pictures are as written in the file, relative to some folder.
        entries: (N,) int64, the indices of the pictures in the file's list.
    """

    categories: dict[int, str]
    objects: Objects
    entries: np.ndarray


class Faults:
    """Handles entries that cannot be used: raises an error for the first, or skips them and counts them by kind.

    Args:
        file: File that contains the entries; or a folder, where each entry names its own file.
        skip: Whether to skip them.
    """

    def __init__(self, file: Path, *, skip: bool) -> None:
        self.file, self.skip = file, skip
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Description of the skipped entries, one line for each kind."""
        return [f"{self.file.name}: {note}" for note in self._notes]

    def leave_out(self, which_N: np.ndarray, entry: Callable[[int], str], done: str = "left out") -> None:
        """Reports entries of one kind.

        Args:
            which_N: Which entries cannot be used, (N,) bool.
            entry: Returns the name of the entry at an index and what is wrong with it.
            done: What is done with skipped entries.

        Raises:
            DataError: If there are any and they are not to be skipped.
        """
        if not which_N.any():
            return
        first = entry(int(which_N.argmax()))
        if not self.skip:
            place = "" if self.file.is_dir() else f"{printable(self.file)}: "
            raise DataError(f"{place}{first}; mend it, or data.on_error=skip goes on without what cannot be used")
        count = int(which_N.sum())
        self._notes.append(f"{count:,} entr{'y' if count == 1 else 'ies'} {done}, the first is {first}")


def read_coco(file: Path, faults: Faults, *, masks: bool = False, overhang: float = ROUNDING) -> CocoFile:
    """Reads a COCO-style JSON.

    COCO's training file of 450 MB takes about 1 GB of memory while it is read, and 0.4 GB more with ``masks``;
    afterwards 0.1 GB, or 0.5 GB with ``masks``.

    Args:
        file: The JSON file.
        faults: Handles entries that cannot be used.
        masks: Whether to keep the masks, which each object must then have.
        overhang: Pixels by which a box may extend beyond its picture. If ``faults`` skips entries, larger boxes are
            clipped, or left out if they are entirely outside.

    Raises:
        DataError: If it is no such JSON, or an entry cannot be used and is not to be skipped.
    """
    content = _load(file, masks=masks)
    categories = _categories(content["categories"], file)
    entries, ids, names, sizes_N2 = _pictures(content["images"], faults)
    return CocoFile(
        categories,
        _annotations(content["annotations"], faults, categories, ids, names, sizes_N2, masks=masks, overhang=overhang),
        entries,
    )


def _load(file: Path, *, masks: bool) -> dict[str, list[Any]]:
    def compact(entry: dict[str, Any]) -> Any:
        # Called for each entry as soon as it is read, as all of them as dicts would take several GB.
        if all(key in entry for key in _KEYS):
            segmentation: bytes | DataError | None = None
            if masks:
                try:
                    segmentation = pack(entry.get("segmentation"))
                except DataError as error:
                    segmentation = error
            return *(entry[key] for key in _KEYS), entry.get("area"), entry.get("iscrowd", 0), segmentation
        return entry

    collecting = gc.isenabled()
    gc.disable()  # it would traverse millions of numbers again and again
    try:
        with file.open(encoding="utf-8-sig") as text:
            content = json.load(text, object_hook=compact)
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read ({error.strerror}): mend it or give another") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(file)} is no complete JSON ({error}): load or write it again") from error
    finally:
        if collecting:
            gc.enable()
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{printable(file)} has no list '{key}': expected COCO's format, an object with the lists images, "
                f"annotations and categories{', and this seems to be results' if isinstance(content, list) else ''}"
            )
    return content


def _categories(given: list[Any], file: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, entry in enumerate(given):
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str) or not name:
            raise DataError(
                f"{printable(file)}: categories[{place}] has no whole number as id, or no name: give it both"
            )
        if number in found or printable(name) in found.values():
            raise DataError(
                f"{printable(file)}: categories[{place}] has the id {number} and the name {printable(name)}, one of "
                "which another has: each needs its own"
            )
        found[number] = printable(name)
    if not found:
        raise DataError(f"{printable(file)} has no categories: list what the boxes are of")
    return dict(sorted(found.items()))


def _pictures(given: list[Any], faults: Faults) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Returns indices, ids, file names, and heights and widths of the usable pictures."""
    rows = [entry if isinstance(entry, dict) else {} for entry in given]
    ids, ids_good = whole([row.get("id") for row in rows])
    sides = [whole([row.get(key) for row in rows]) for key in ("height", "width")]
    names = [row.get("file_name") for row in rows]
    texts = [name.replace("\\", "/") if isinstance(name, str) else "" for name in names]

    def shown(n: int) -> str:
        return f"images[{n}] ({_shown(names[n])})"

    def shares(what: str) -> Callable[[int], str]:
        return lambda n: f"{shown(n)} has the {what} of another: which of them is meant?"

    bad = ~ids_good
    faults.leave_out(bad, lambda n: f"{shown(n)} has no whole number as id, but {_shown(rows[n].get('id'))}")
    nameless = np.array([not _may_be_a_path(text) for text in texts], bool) & ~bad
    faults.leave_out(nameless, lambda n: f"{shown(n)} has no file_name")
    bad |= nameless
    flat = ~np.logical_and.reduce([good & (values > 0) for values, good in sides]) & ~bad
    faults.leave_out(
        flat, lambda n: f"{shown(n)} is of {_shown(rows[n].get('width'))} x {_shown(rows[n].get('height'))} pixels"
    )
    bad |= flat
    for what, values in (("id", ids), ("file_name", np.array(texts, object))):
        again = repeated(values, ~bad)
        faults.leave_out(again, shares(what))
        bad |= again
    kept = np.flatnonzero(~bad)
    return kept, ids[kept], [texts[n] for n in kept], np.stack([values[kept] for values, _ in sides], axis=1)


def _may_be_a_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # JSON may hold half of a surrogate pair
        return False


def _annotations(
    given: list[Any],
    faults: Faults,
    categories: dict[int, str],
    ids: np.ndarray,
    names: list[str],
    sizes_N2: np.ndarray,
    *,
    masks: bool,
    overhang: float,
) -> Objects:
    complete = [isinstance(row, tuple) for row in given]
    rows = (
        given
        if all(complete)
        else [row if is_whole else (None,) * 6 for row, is_whole in zip(given, complete, strict=True)]
    )
    image_ids, image_good = whole([row[0] for row in rows])
    category_ids, category_good = whole([row[1] for row in rows])
    boxes = numbers([row[2] for row in rows], 4)
    absent = np.array([row[3] is None for row in rows], bool)
    areas = np.where(absent, boxes[:, 2] * boxes[:, 3], numbers([[row[3]] for row in rows], 1)[:, 0])
    crowds = np.array([-1 if row[4] not in (0, 1) else int(row[4]) for row in rows], np.int64)

    places, known = find(ids, image_ids)
    labels, named = find(np.array(list(categories)), category_ids)
    finite = np.isfinite(boxes).all(1)
    height_M, width_M = sizes_N2[places].T if len(ids) else np.zeros((2, len(rows)))
    with np.errstate(invalid="ignore"):
        boxes[:, 2:] += boxes[:, :2]  # the right and lower edges
        negative = (boxes[:, 2:] < boxes[:, :2]).any(1)
        limits = np.stack([width_M, height_M, width_M, height_M], axis=1)
        beyond = np.maximum(-boxes, boxes - limits).max(1, initial=0) > overhang
        outside = beyond & ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits[:, :2])).any(1)

    def box(n: int) -> str:
        return f"annotations[{n}] has the bbox {_shown(rows[n][2])}"

    def picture(n: int) -> str:
        at = places[n]
        return f"{printable(names[at])} of {sizes_N2[at, 1]} x {sizes_N2[at, 0]} pixels"

    checks: list[tuple[Any, Callable[[int], str]]] = [
        (~np.array(complete, bool), lambda n: f"annotations[{n}] lacks one of {', '.join(_KEYS)}"),
        (
            ~(image_good & known),
            lambda n: f"annotations[{n}] has the image_id {_shown(rows[n][0])}, of no picture",
        ),
        (
            ~(category_good & named),
            lambda n: f"annotations[{n}] has the category_id {_shown(rows[n][1])}, of no category",
        ),
        (~finite, lambda n: f"{box(n)}, expected left, top, width and height"),
        (negative, lambda n: f"{box(n)}, of negative width or height"),
        (
            outside if faults.skip else beyond,
            lambda n: f"{box(n)}, which reaches out of {picture(n)}; it is left, top, width and height",
        ),
        (~((areas >= 0) & np.isfinite(areas)), lambda n: f"annotations[{n}] has the area {_shown(rows[n][3])}"),
        (crowds < 0, lambda n: f"annotations[{n}] has the iscrowd {_shown(rows[n][4])}, expected 0 or 1"),
    ]
    if masks:
        refused = np.array([not row[5] or isinstance(row[5], DataError) for row in rows], bool)
        none = "its segmentation is empty; data.masks=false does without"
        checks.append((refused, lambda n: f"annotations[{n}]: {rows[n][5] or none}"))
    bad = np.zeros(len(rows), bool)
    for which, entry in checks:
        faults.leave_out(which & ~bad, entry)
        bad |= which
    cut = beyond & ~bad & np.isfinite(overhang)
    faults.leave_out(cut, lambda n: f"{box(n)}, in {picture(n)}", done="cut off at the edge of their picture")
    boxes[cut] = np.clip(boxes[cut], 0, limits[cut])

    kept = np.flatnonzero(~bad)
    kept = kept[places[kept].argsort(kind="stable")]
    return Objects(
        Texts(names),
        ids,
        sizes_N2,
        np.searchsorted(places[kept], np.arange(len(ids) + 1)),
        boxes[kept].astype(np.float32),
        labels[kept],
        areas[kept].astype(np.float32),
        crowds[kept] == 1,
        kept,
        Blobs(rows[n][5] or b"" for n in kept) if masks else None,
    )


def _shown(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
