"""The user's own pictures in YOLO's format: a text file for each picture, and a YAML file that names the classes."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mobilemamba.data.blobs import Blobs, Texts
from mobilemamba.data.coco_json import Faults
from mobilemamba.data.coco_masks import pack
from mobilemamba.data.detection_pictures import DetectionPictures
from mobilemamba.data.folders import NOWHERE, describe_left_out, list_pictures, why_no_folder
from mobilemamba.data.layout import PART_NAMES, find_parts, require_folder
from mobilemamba.data.objects import Objects
from mobilemamba.data.pictures import open_picture, turned_size
from mobilemamba.errors import DataError
from mobilemamba.text import printable

_BOX = 5  # numbers in a line with a box; a line with a polygon has more
_ROUNDING = 0.01  # fraction of a picture's side by which a box may extend beyond it


class YOLOFolder(DetectionPictures):
    """Pictures in ``root/images/{train,val}/``, text files in ``root/labels/{train,val}/``, and ``root/data.yaml``.

    This is ultralytics' layout; ``root/train/images/`` and ``root/train/labels/`` are accepted too. ``data.yaml`` gives
    the classes in ``names``, as a list or a dict by number, and the folder of each part's pictures in ``train``,
    ``val`` and ``test``. A text file has its picture's name. Each of its lines has a class's number, then the box's
    centre, width and height as fractions of the picture's sides, or the corners of a polygon, which is also the mask. A
    picture without a text file has no objects.

    Args:
        **options: Arguments of :class:`~mobilemamba.data.detection_pictures.DetectionPictures`.
    """

    @classmethod
    def is_root(cls, root: Path) -> bool:
        """Whether a folder looks like a ``root``: with ``labels`` beside ``images``, and such a YAML file."""
        folders = [root, *find_parts(root).values()]
        if not any(all((folder / name).is_dir() for name in ("images", "labels")) for folder in folders):
            return False
        try:
            return bool(cls(str(root)).description)
        except DataError:
            return False

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of ``data.yaml``.

        Raises:
            DataError: If the file is missing or invalid.
        """
        root = require_folder(self.root, "data.yaml, images/ and labels/")
        files = [*root.glob("*.yaml"), *root.glob("*.yml")]
        file = files[0] if len(files) == 1 else root / "data.yaml"
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise DataError(
                f"{printable(file)} cannot be read ({error.strerror}): write one with names, train and val"
            ) from error
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise DataError(f"{printable(file)} is no YAML ({printable(error)}): mend it") from error
        if not isinstance(content, dict) or not isinstance(content.get("names"), list | dict):
            raise DataError(f"{printable(file)} has no names: list the classes, e.g. 'names: [cat, dog]'")
        return content

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # found when asked for
        given = self.description["names"]
        named = dict(enumerate(given)) if isinstance(given, list) else given
        if not named or set(named) != set(range(len(named))):
            raise DataError(
                f"{printable(self.root)}: data.yaml names the classes {list(named)[:5]}: number them from 0, no gaps"
            )
        names = tuple(printable(named[number]) for number in range(len(named)))
        count = self.description.get("nc", len(names))
        if count != len(names):
            raise DataError(f"{printable(self.root)}: data.yaml has nc {count}, but {len(names)} names: mend either")
        if twice := next((name for name, number in Counter(names).items() if number > 1), None):
            raise DataError(f"{printable(self.root)}: data.yaml has the class '{twice}' twice: each needs its own name")
        return names

    @cached_property
    def parts(self) -> dict[str, Objects]:
        found, left_out = {}, Counter[str]()
        for part in PART_NAMES:
            if folder := self._folder(part):
                found[part] = self._read(folder, left_out)
        if not found:
            raise DataError(
                f"{printable(self.root)} has no pictures in images/train/ or train/images/: put them there, or name "
                "the folder in data.yaml, e.g. 'train: images/train'"
            )
        if line := describe_left_out(left_out):
            self.notes.append(line)
        return found

    def _folder(self, part: str) -> Path | None:
        """Returns the folder of a part's pictures; None if there is none."""
        given, root, places = self.description.get(part), Path(self.root), list[Path]()
        if isinstance(given, str):
            # Paths may be those of the author's machine, so folders in our root take precedence.
            below = given.removeprefix("../").removeprefix("./")
            places = [root / below, root / str(self.description.get("path", "")) / given, root / given]
        if found := next((place for place in places if why_no_folder(place) is None), None):
            return found / "images" if (found / "images").is_dir() else found
        if given is not None and (not places or any(why_no_folder(place) != NOWHERE for place in places)):
            raise DataError(f"{printable(root)}: data.yaml has no folder as {part}, but {printable(given)}: give one")
        usual = [folder for name in PART_NAMES[part] for folder in (root / "images" / name, root / name / "images")]
        found = next((folder for folder in usual if folder.is_dir()), None)
        if found is None and given is not None and part != "test":
            raise DataError(f"{printable(root)}: data.yaml has {printable(given)} as {part}, which is no folder")
        if found is None and part == "train" and (root / "images").is_dir() and not any((root / "images").glob("*/")):
            return root / "images"
        return found

    def _read(self, folder: Path, left_out: Counter[str]) -> Objects:
        labels = _labels_folder(folder)
        paths = list_pictures(folder, left_out)
        if not paths:
            raise DataError(f"{printable(folder)} holds no pictures: add some or remove it")
        kept: list[str] = []
        sizes: list[tuple[int, int]] = []
        counts, entries = [0], []
        rows: list[tuple[int, np.ndarray, bytes]] = []
        faults = Faults(labels, skip=self.on_error == "skip")
        for path in paths:
            try:
                with open_picture(path) as picture:
                    size = turned_size(picture) if self.upright else picture.size
            except DataError as error:
                faults.add(printable(path), f"({error})")
                continue
            text = labels / Path(path).relative_to(folder).with_suffix(".txt")
            for number, words in _lines(text):
                try:
                    rows.append(self._object(words, size))
                    entries.append(number)
                except DataError as error:
                    faults.add(f"{printable(text)}, line {number},", error)
            kept.append(path)
            sizes.append((size[1], size[0]))
            counts.append(len(rows))
        self.notes += faults.notes
        boxes = np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4)
        return Objects(
            Texts(kept),
            np.arange(len(kept)),
            np.array(sizes, np.int64).reshape(-1, 2),
            np.array(counts),
            boxes,
            np.array([label for label, _, _ in rows], np.int64),
            (boxes[:, 2:] - boxes[:, :2]).prod(1),
            np.zeros(len(rows), bool),
            np.array(entries, np.int64),
            Blobs(mask for _, _, mask in rows) if self.masks else None,
        )

    def _object(self, words: list[str], size: tuple[int, int]) -> tuple[int, np.ndarray, bytes]:
        """Returns label, box in pixels and packed mask of a line.

        Raises:
            DataError: If the line cannot be used; the message is only the reason.
        """
        try:
            numbers = np.array(words, np.float64)
        except ValueError:
            numbers = np.array([np.nan])
        label, shares = numbers[0], numbers[1:]
        polygon = len(numbers) > _BOX
        if not np.isfinite(numbers).all() or len(numbers) < _BOX or (polygon and len(shares) % 2):
            raise DataError("is no class with a box or a polygon: expected 5 numbers, or 7, 9 and so on")
        if label != int(label) or not 0 <= label < self.num_classes:
            raise DataError(
                f"has the class {words[0]}: expected 0 to {self.num_classes - 1}, as data.yaml numbers them"
            )
        if polygon:
            points = shares.reshape(-1, 2)
            low, high = points.min(0), points.max(0)
        else:
            low, high = shares[:2] - shares[2:] / 2, shares[:2] + shares[2:] / 2
            if self.masks:
                raise DataError("has a box and no corners of a mask; data.masks=false does without")
        if not (low < high).all():
            raise DataError(f"has an object without width or height, {' '.join(words[1:])}")
        outside = (high <= 0).any() or (low >= 1).any()
        beyond = min(low.min(), 1 - high.max()) < -_ROUNDING
        if outside or (beyond and self.on_error == "stop"):
            raise DataError(f"reaches out of its picture: {' '.join(words[1:5])} are no shares of its sides, 0 to 1")
        box = np.concatenate([low, high]).clip(0, 1) * (*size, *size)
        mask = pack([(points * size).ravel().tolist()]) if self.masks else b""
        return int(label), box, mask


def _lines(file: Path) -> list[tuple[int, list[str]]]:
    """Returns the number, from 1, and the words of each line that is not blank; none if the file does not exist.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(f"{printable(file)} cannot be read ({reason}): mend it or remove it") from error
    return [(number, words) for number, line in enumerate(text.splitlines(), 1) if (words := line.split())]


def _labels_folder(pictures: Path) -> Path:
    """Returns the folder of text files: the path with its last ``images`` replaced by ``labels``.

    Raises:
        DataError: If there is no such folder.
    """
    parts = list(pictures.parts)
    places = [number for number, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    found = Path(*parts) if places else pictures
    if not found.is_dir():
        raise DataError(
            f"{printable(found)} does not exist: put there a text for each picture of {printable(pictures)}"
        )
    return found
