"""COCO, and the user's own pictures with a COCO-style JSON for each part."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mobilemamba.data.coco_categories import CATEGORIES
from mobilemamba.data.coco_json import ROUNDING, CocoFile, Faults, read_coco
from mobilemamba.data.detection_pictures import DetectionPictures
from mobilemamba.data.folders import few
from mobilemamba.data.layout import PART_NAMES, PART_OF, find_parts, require_folder
from mobilemamba.data.objects import Objects
from mobilemamba.errors import DataError
from mobilemamba.text import printable

_WORDS = re.compile(r"[a-z]+")


class COCOFolder(DetectionPictures):
    """Pictures with boxes in COCO's format, with a JSON file for each part.

    The JSON files are in ``root``, in ``root/annotations/`` or with the pictures, and are recognised by the word train,
    val or test in their own or their folder's name: ``train.json``, ``annotations/instances_val.json``,
    ``valid/_annotations.coco.json``. The pictures are searched by their file names in ``root/train/``,
    ``root/images/train/``, ``root/images/`` and the like. A single JSON without such a word is for training, with a
    fraction of its pictures for validation. The labels are the categories in the order of their ids.

    Args:
        annotations: JSON file of each part, e.g. ``{train: a.json, val: b.json}``, if their names do not tell; relative
            to ``root``, or absolute.
        **options: Arguments of :class:`~mobilemamba.data.detection_pictures.DetectionPictures`.
    """

    overhang: ClassVar[float] = ROUNDING  # pixels by which a box may extend beyond its picture
    official: ClassVar[dict[int, str] | None] = None  # the categories, if they are known without a file

    def __init__(self, root: str, annotations: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.annotations = annotations

    @classmethod
    def is_root(cls, root: Path) -> bool:
        """Whether a folder looks like a ``root``: with JSON files that are recognised by their names."""
        try:
            found = cls(str(root))._find_files(root)
        except DataError:
            return False
        return all(_begins_like_coco(file) for file in found.values())

    @cached_property
    def files(self) -> dict[str, Path]:
        """The JSON of each part.

        Raises:
            DataError: If they cannot be found.
        """
        root = require_folder(self.root, "pictures and a COCO-style JSON for each part")
        if self.annotations is not None:
            if unknown := set(self.annotations) - set(PART_NAMES):
                raise DataError(f"data.annotations names the part {few(sorted(unknown))}: give train, val or test")
            given = {part: root / file for part, file in self.annotations.items()}
        else:
            given = self._find_files(root)
        for file in given.values():
            if not file.is_file():
                raise DataError(f"{printable(file)} does not exist: put the annotations there, or set data.annotations")
        return given

    @cached_property
    def contents(self) -> dict[str, CocoFile]:
        """The content of each part's JSON, with the pictures' paths.

        Raises:
            DataError: If a file cannot be used, or the files disagree.
        """
        found: dict[str, CocoFile] = {}
        known = self.official and ("COCO", self.official)
        for part, file in self.files.items():
            faults = Faults(file, skip=self.on_error == "skip")
            content = read_coco(file, faults, masks=self.masks, overhang=self.overhang)
            known = known or (printable(file), content.categories)
            found[part] = _agreeing(self._with_paths(content, part, file, faults), file, *known)
            self.notes += faults.notes
        return found

    @cached_property
    def categories(self) -> dict[int, str]:
        """Category id -> name, in the order of the labels."""
        return self.official or next(iter(self.contents.values())).categories

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(self.categories)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # found when asked for
        return tuple(self.categories.values())

    @cached_property
    def parts(self) -> dict[str, Objects]:
        return {part: content.objects for part, content in self.contents.items()}

    def _find_files(self, root: Path) -> dict[str, Path]:
        folders = [root, root / "annotations", *find_parts(root).values()]
        files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
        by_part: dict[str, list[Path]] = {}
        for file in files:
            if part := _part_of(file, root):
                by_part.setdefault(part, []).append(file)
        if not by_part and len(files) == 1:
            return {"train": files[0]}
        chosen = {part: _instances(of_part) for part, of_part in by_part.items()}
        if unclear := next((part for part, of_part in chosen.items() if len(of_part) > 1), None):
            raise DataError(
                f"{printable(root)} has several files that may be of the {unclear} part: "
                f"{few([file.name for file in chosen[unclear]])}; name them in data.annotations, e.g. "
                "'{train: a.json, val: b.json}'"
            )
        if not chosen:
            seen = f": {few([file.name for file in files])} name no part" if files else ""
            raise DataError(
                f"{printable(root)} has no train.json and val.json, also not in annotations/ or with the pictures"
                f"{seen}; name the files in data.annotations, e.g. '{{train: a.json, val: b.json}}'"
            )
        return {part: chosen[part][0] for part in PART_NAMES if part in chosen}

    def _picture_folders(self, part: str, file: Path) -> Iterable[Path]:
        """Yields the folders that may contain the pictures of a part."""
        root, own = Path(self.root), file.parent
        names = dict.fromkeys([part, *PART_NAMES[part], *re.findall(rf"{part}\w*", file.stem)])
        for name in names:
            yield from (root / name, root / "images" / name, root / name / "images")
        yield from (root / "images", own, own / "images", root)

    def _with_paths(self, content: CocoFile, part: str, file: Path, faults: Faults) -> CocoFile:
        """Returns the content with the paths of the existing pictures, without the missing ones."""
        names = [content.objects.paths[n] for n in range(len(content.objects))]
        folders = [folder for folder in dict.fromkeys(self._picture_folders(part, file)) if folder.is_dir()]
        present = {folder: _present(folder, names[:20]) for folder in folders}
        best = max(folders, key=lambda folder: sum(present[folder]), default=Path(self.root))
        there = np.array(_present(best, names), bool)
        missing = np.flatnonzero(~there)
        for n in missing:
            faults.add(
                f"images[{content.entries[n]}], {printable(best / names[n])},",
                f"does not exist ({len(missing):,} of {len(names):,} pictures are missing)",
            )
        kept = np.flatnonzero(there)
        if not len(kept):
            raise DataError(f"{printable(file)} has no pictures: list some, or remove it")
        objects = content.objects.taken(kept, [str(best / names[n]) for n in kept])
        return CocoFile(content.categories, objects, content.entries[kept])


class COCO(COCOFolder):
    """COCO (Lin et al., ECCV 2014) in its official layout: ``root/train2017/``, ``val2017/``, ``annotations/``.

    118,287 training and 5,000 validation pictures with boxes and masks of 80 categories, whose ids have gaps: the
    labels are 0 to 79. The 1,021 training pictures without annotations are left out.

    Args:
        year: Year in the names of folders and files.
        **options: Arguments of :class:`~mobilemamba.data.detection_pictures.DetectionPictures`.
    """

    title: ClassVar[str] = "COCO"
    official: ClassVar[dict[int, str] | None] = CATEGORIES
    antialias = False
    overhang: ClassVar[float] = inf  # the boxes are used unchanged, as everyone compares on them

    def __init__(self, root: str, year: int = 2017, **options: Any) -> None:
        super().__init__(root, **options)
        self.year = year

    def _find_files(self, root: Path) -> dict[str, Path]:
        found = {part: root / "annotations" / f"instances_{part}{self.year}.json" for part in ("train", "val")}
        present = {part: file for part, file in found.items() if file.exists() and self._pictures(part).is_dir()}
        if not present:
            raise DataError(
                f"{printable(root)} has neither {self._pictures('train').name}/ with {found['train'].name} nor "
                f"{self._pictures('val').name}/ with {found['val'].name} in annotations/: unpack COCO's archives there"
            )
        return present

    def _picture_folders(self, part: str, file: Path) -> Iterable[Path]:
        return [self._pictures(part)]

    def _pictures(self, part: str) -> Path:
        return Path(self.root, f"{part}{self.year}")


def _agreeing(content: CocoFile, file: Path, other_file: str, categories: dict[int, str]) -> CocoFile:
    """Returns the content with labels by another file's categories, which must include this file's.

    Raises:
        DataError: If they do not.
    """
    for number, name in content.categories.items():
        if categories.get(number) != name:
            other = f"'{categories[number]}'" if number in categories else "missing"
            raise DataError(
                f"{printable(file)} and {other_file} disagree: category {number} is '{name}' in the one and {other} in "
                "the other; give both the same categories"
            )
    places = list(categories)
    label_of = np.array([places.index(number) for number in content.categories], np.int64)
    return content._replace(objects=replace(content.objects, labels=label_of[content.objects.labels]))


def _part_of(file: Path, root: Path) -> str | None:
    """Returns the part that a file's name or its folder's name tells, or None."""
    for name in (file.stem, *(() if file.parent == root else (file.parent.name,))):
        parts = {PART_OF[word] for word in _WORDS.findall(name.lower()) if word in PART_OF}
        if len(parts) == 1:
            return parts.pop()
    return None


def _begins_like_coco(file: Path) -> bool:
    """Whether a file begins like a JSON object with one of COCO's lists; reads only its start, as it may be large."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as text:
            begin = text.read(4096).lstrip()
    except OSError:
        return False
    return begin.startswith("{") and any(f'"{name}"' in begin for name in ("images", "annotations", "categories"))


def _instances(files: list[Path]) -> list[Path]:
    """Selects COCO's files with boxes, as there are also files with captions and with key points of persons."""
    return [file for file in files if "instances" in file.stem] or files


def _present(folder: Path, names: list[str]) -> list[bool]:
    """Returns which of the files exist; quick for many files in one folder."""
    listed: dict[str, set[str]] = {}
    found = []
    for name in names:
        inner, _, last = name.rpartition("/")
        if inner not in listed:
            try:
                listed[inner] = set(os.listdir(folder / inner))  # noqa: PTH208
            except (OSError, ValueError):
                listed[inner] = set()
        found.append(last in listed[inner])
    return found
