"""Reading and checking a COCO-style JSON: pictures, categories, and objects with their boxes."""

import gc
import json
import os
from collections import Counter
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

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


class _Picture(NamedTuple):
    entry: int  # index in the file's list
    id: int
    name: str
    height: int
    width: int


class Faults:
    """Handles entries that cannot be used: raises an error for the first, or skips them and counts them.

    Args:
        file: File that contains the entries; or a folder, where each entry names its own file.
        skip: Whether to skip them.
    """

    def __init__(self, file: Path, *, skip: bool) -> None:
        self.file, self.skip = file, skip
        self._first: dict[tuple[str, str], str] = {}  # what was done, and the kind of fault -> the first such entry
        self._counts = Counter[tuple[str, str]]()

    @property
    def notes(self) -> list[str]:
        """Description of the skipped entries, one line for each kind."""
        return [
            f"{self.file.name}: {n:,} entr{'y' if n == 1 else 'ies'} {kind[0]}, the first is {self._first[kind]}"
            for kind, n in self._counts.items()
        ]

    def add(self, entry: str, reason: object, done: str = "left out") -> None:
        """Reports an entry.

        Args:
            entry: Its name.
            reason: What is wrong with it; the first three words, as ``has the bbox``, are the kind.
            done: What is done with it if it is skipped.

        Raises:
            DataError: If it is not to be skipped.
        """
        if not self.skip:
            place = "" if self.file.is_dir() else f"{printable(self.file)}: "
            raise DataError(
                f"{place}{entry} {reason}; mend it, or data.on_error=skip goes on without what cannot be used"
            )
        kind = done, " ".join(str(reason).split()[:3])
        self._counts[kind] += 1
        self._first.setdefault(kind, f"{entry} {reason}")


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
    collecting = gc.isenabled()
    gc.disable()  # it would traverse millions of numbers again and again
    try:
        content = _load(file, masks=masks)
        categories = _categories(content["categories"], file)
        pictures = _pictures(content["images"], faults)
        objects = _objects(content["annotations"], faults, categories, pictures, masks=masks, overhang=overhang)
    finally:
        if collecting:
            gc.enable()
    return CocoFile(categories, objects, np.array([picture.entry for picture in pictures], np.int64))


def _load(file: Path, *, masks: bool) -> dict[str, list[Any]]:
    required = itemgetter(*_KEYS)

    def compact(entry: dict[str, Any]) -> Any:
        # Called for each entry as soon as it is read, as all of them as dicts would take several GB.
        try:
            values = required(entry)
        except KeyError:
            return entry
        segmentation: bytes | DataError | None = None
        if masks:
            try:
                segmentation = pack(entry.get("segmentation"))
            except DataError as error:
                segmentation = error
        return *values, entry.get("area"), entry.get("iscrowd", 0), segmentation

    try:
        with file.open(encoding="utf-8-sig") as text:
            content = json.load(text, object_hook=compact)
    except OSError as error:
        raise DataError(f"{printable(file)} cannot be read ({error.strerror}): mend it or give another") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(file)} is no complete JSON ({error}): load or write it again") from error
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


def _pictures(given: list[Any], faults: Faults) -> list[_Picture]:
    """Returns the usable pictures."""
    by_id: dict[int, _Picture] = {}
    names = set[str]()
    for n, entry in enumerate(given):
        fields = entry if isinstance(entry, dict) else {}
        try:
            picture = _picture(n, fields)
            if picture.id in by_id:
                raise DataError("has the id of another: which of them is meant?")
            if picture.name in names:
                raise DataError("has the file_name of another: which of them is meant?")
        except DataError as error:
            faults.add(f"images[{n}] ({_shown(fields.get('file_name'))})", error)
        else:
            by_id[picture.id] = picture
            names.add(picture.name)
    return list(by_id.values())


def _picture(n: int, fields: dict[str, Any]) -> _Picture:
    """Checks the n-th picture.

    Raises:
        DataError: If it cannot be used; the message is only the reason.
    """
    number, name = fields.get("id"), fields.get("file_name")
    height, width = fields.get("height"), fields.get("width")
    if not _is_whole(number):
        raise DataError(f"has no whole number as id, but {_shown(number)}")
    if not isinstance(name, str) or not _may_be_a_path(name):
        raise DataError("has no file_name")
    if not (_is_whole(height, 1) and _is_whole(width, 1)):
        raise DataError(f"is of {_shown(width)} x {_shown(height)} pixels")
    return _Picture(n, number, name.replace("\\", "/"), height, width)


def _is_whole(value: Any, least: int = -(2**63)) -> TypeGuard[int]:
    return type(value) is int and least <= value < 2**63


def _may_be_a_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # JSON may hold half of a surrogate pair
        return False


def _objects(
    given: list[Any],
    faults: Faults,
    categories: dict[int, str],
    pictures: list[_Picture],
    *,
    masks: bool,
    overhang: float,
) -> Objects:
    """Returns the usable annotations, in the order of the pictures."""
    places = {picture.id: place for place, picture in enumerate(pictures)}
    labels = {number: label for label, number in enumerate(categories)}

    def checked(n: int, row: Any) -> tuple[Any, ...]:
        """Checks the n-th annotation.

        Raises:
            DataError: If it cannot be used; the message is only the reason.
        """
        if not isinstance(row, tuple):
            raise DataError(f"lacks one of {', '.join(_KEYS)}")
        image_id, category_id, bbox, area, crowd, mask = row
        if type(image_id) is not int or image_id not in places:
            raise DataError(f"has the image_id {_shown(image_id)}, of no picture")
        if type(category_id) is not int or category_id not in labels:
            raise DataError(f"has the category_id {_shown(category_id)}, of no category")
        numbers = _finite(bbox)
        if len(numbers) != 4:
            raise DataError(f"has the bbox {_shown(bbox)}, expected left, top, width and height")
        left, top, width, height = numbers
        if width < 0 or height < 0:
            raise DataError(f"has the bbox {_shown(bbox)}, of negative width or height")
        areas = _finite([width * height if area is None else area])
        if not areas or areas[0] < 0:
            raise DataError(f"has the area {_shown(area)}")
        if crowd not in (0, 1):
            raise DataError(f"has the iscrowd {_shown(crowd)}, expected 0 or 1")
        if masks and (not mask or isinstance(mask, DataError)):
            raise DataError(f"has no mask: {mask or 'its segmentation is empty; data.masks=false does without'}")
        place = places[image_id]
        _, _, name, high, wide = pictures[place]
        right, bottom = left + width, top + height
        if left < -overhang or top < -overhang or right > wide + overhang or bottom > high + overhang:
            reason = f"has the bbox {_shown(bbox)}, which reaches out of {printable(name)} of {wide} x {high} pixels"
            if not faults.skip or left >= wide or top >= high or right <= 0 or bottom <= 0:
                raise DataError(f"{reason}; it is left, top, width and height")
            faults.add(f"annotations[{n}]", reason, "cut off at the edge of their picture")
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, wide), min(bottom, high)
        return n, place, left, top, right, bottom, labels[category_id], areas[0], crowd, mask

    found: list[tuple[Any, ...]] = []
    for n, row in enumerate(given):
        try:
            found.append(checked(n, row))
        except DataError as error:
            faults.add(f"annotations[{n}]", error)
    found.sort(key=itemgetter(1))
    entries, owners, *boxes, classes, areas, crowds, packed = zip(*found, strict=True) if found else [()] * 10
    return Objects(
        Texts(picture.name for picture in pictures),
        np.array([picture.id for picture in pictures], np.int64),
        np.array([(picture.height, picture.width) for picture in pictures], np.int64).reshape(-1, 2),
        np.searchsorted(owners, np.arange(len(pictures) + 1)),
        np.stack([np.array(edges, np.float32) for edges in boxes], axis=1),
        np.array(classes, np.int64),
        np.array(areas, np.float32),
        np.array(crowds, bool),
        np.array(entries, np.int64),
        Blobs(packed) if masks else None,
    )


def _finite(values: Any) -> list[float]:
    """Returns a list of numbers; empty if it is none, or any is not finite."""
    try:
        found = list(map(float, values)) if isinstance(values, list) else []
    except (TypeError, ValueError, OverflowError):
        return []
    return found if isfinite(sum(found)) else []


def _shown(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
