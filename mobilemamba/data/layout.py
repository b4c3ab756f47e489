"""Which folders of a data set hold which of its pictures: the usual names, and what is refused rather than guessed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mobilemamba.data.folders import NOWHERE, few, scan_folder, why_no_folder
from mobilemamba.errors import DataError
from mobilemamba.text import printable

#: The names of each part's folder, in any case.
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PART_NAMES.items() for name in names}
_LOOKED_INTO = 100
_LIKE_A_PART = re.compile(rf"(^|[^a-z])({'|'.join(PART_OF)}|trn|tst|dev|eval|evaluation|holdout)(set)?([^a-z]|$)")
_UNDERSTOOD = "name the parts train, val and test, with a folder for each class in them"
#: Share of all inner names that folders have on average, from which on these are the classes and those the parts.
_ALIKE = 0.75


class Layout(NamedTuple):
    """The folders that hold class folders, as far as they exist, and what to tell of the others, a line each."""

    train: Path | None
    val: Path | None
    test: Path | None
    notes: list[str]


def require_folder(root: str, expected: str) -> Path:
    """The folder ``root``.

    Args:
        root: As given.
        expected: What it is to hold, for the error.

    Raises:
        DataError: If it is none.
    """
    if reason := why_no_folder(root):
        but = "" if reason == NOWHERE else f" but {reason}"
        raise DataError(f"data.root {printable(root)} is not a folder{but}: give one that holds {expected}")
    return Path(root)


def spread_share(number: int, fraction: float) -> set[int]:
    """Which of ``number`` pictures to set aside: about a share of them, evenly spread, at least one; but never all."""
    count = min(number - 1, max(1, round(number * fraction)))
    return {(2 * i + 1) * number // (2 * count) for i in range(count)}


def find_parts(root: Path) -> dict[str, Path]:
    """The folders directly in ``root`` that are named as the parts ``train``, ``val`` and ``test``.

    Raises:
        DataError: If two of them are named as the same part.
    """
    parts: dict[str, Path] = {}
    for folder in map(Path, scan_folder(root)[1]):
        part = PART_OF.get(folder.name.lower())
        if part is not None and parts.setdefault(part, folder) != folder:
            raise DataError(
                f"{printable(root)} holds both {parts[part].name}/ and {folder.name}/: which of them is the "
                f"{part} part? Move the other one elsewhere"
            )
    return parts


def find_layout(root: Path) -> Layout:
    """The parts of ``root``; without any, its own folders are the classes, all of them for training.

    Raises:
        DataError: If two folders are named as the same part; or if folders would pass for classes that are rather parts
            under other names, or data sets.
    """
    parts, folders = find_parts(root), [Path(path) for path in scan_folder(root)[1]]
    others = [folder for folder in folders if folder not in parts.values()]
    pictures_in = {folder: scan_folder(folder) for folder in parts.values()}
    if len(parts) == 1 and others and not any(folders for _, folders in pictures_in.values()):
        parts = {}  # a class: vehicles are cars, buses and trains
    if not parts:
        _refuse_disguised_parts(folders)
        return Layout(root, None, None, [])
    notes = []
    if others:
        notes.append(f"not used: {few([f'{folder.name}/' for folder in others])} beside {few(_names(parts))}")
    for folder, (pictures, inner) in pictures_in.items():
        if pictures and inner:
            notes.append(f"not used: {len(pictures):,} pictures beside the class folders of {printable(folder)}")
    return Layout(parts.get("train"), parts.get("val"), parts.get("test"), notes)


def refuse_nested(root: Path, classes: Sequence[str]) -> None:
    """Refuses a single class, classes that are data sets with parts of their own, and parts under unknown names.

    Args:
        root: Holds the class folders.
        classes: Their names.

    Raises:
        DataError: With what to do instead.
    """
    # To look into each of thousands of classes takes longer than the mistake is likely there.
    nested = {name: parts for name in classes[:_LOOKED_INTO] if (parts := find_parts(root / name))}
    for name, parts in nested.items():
        remedy = (
            "a data set one level deeper: give that folder"
            if len(nested) == 1
            else f"parts below the classes: put them above, as {next(iter(parts.values())).name}/<class>/"
        )
        raise DataError(f"{printable(root / name)} holds {few(_names(parts))}, {remedy}")
    if len(classes) > 1:
        _refuse_unknown_parts(root, classes)
        return
    inner = [Path(path).name for path in scan_folder(root / classes[0])[1]]
    deeper = f"; give {printable(root / classes[0])} if its folders are the classes ({few(inner)})" if inner else ""
    raise DataError(
        f"{printable(root)} holds one class alone, {printable(classes[0])}, and a classifier needs two: put the "
        f"pictures of each class into a folder of its own{deeper}"
    )


def disguised_parts(root: Path) -> list[str]:
    """The folders in ``root`` if all of them are named nearly as parts, as ``trn`` and ``tst`` are; else none."""
    folders = [Path(path) for path in scan_folder(root)[1]]
    alike = _like_parts(folders)
    return [printable(folder) for folder in alike] if _all_parts(alike, folders) else []


def _like_parts(folders: list[Path]) -> dict[Path, str]:
    """Those that have the name of a part in theirs, with it."""
    return {folder: found[2] for folder in folders if (found := _LIKE_A_PART.search(folder.name.lower()))}


def _all_parts(alike: dict[Path, str], folders: list[Path]) -> bool:
    return len(alike) == len(folders) and len(set(alike.values())) > 1


def _refuse_disguised_parts(folders: list[Path]) -> None:
    alike = _like_parts(folders)
    # A class may be a "bullet train"; its folder then holds pictures, and there are other ones.
    flat = _all_parts(alike, folders)
    if hiding := [folder for folder in alike if flat or _holds_folders_alone(folder)]:
        raise DataError(f"{printable(hiding[0])} looks like a part of a data set rather than a class: {_UNDERSTOOD}")


def _refuse_unknown_parts(root: Path, names: Sequence[str]) -> None:
    """Refuses folders of folders that have the same names in each of them: ``fold1/cat``, ``fold2/cat``."""
    inner: list[set[str]] = []
    for name in names if len(names) <= _LOOKED_INTO else ():
        pictures, folders = scan_folder(root / name)
        if len(pictures) >= len(folders):
            return  # a class, perhaps with folders beside its pictures
        inner.append({Path(path).name for path in folders})
    alike = sorted(set().union(*inner))
    # A single name is none of a class: Tiny ImageNet has <class>/images/.
    if len(alike) > 1 and sum(map(len, inner)) >= _ALIKE * len(inner) * len(alike):
        raise DataError(
            f"{few([f'{name}/' for name in names])} in {printable(root)} hold folders of the same names "
            f"({few(alike)}), so these seem to be the classes and those parts: {_UNDERSTOOD}, or give one part alone; "
            f"if it is the other way round, give data.classes as [{few(names)}]"
        )


def _holds_folders_alone(folder: Path) -> bool:
    pictures, folders = scan_folder(folder)
    return bool(folders) and not pictures


def _names(parts: dict[str, Path]) -> list[str]:
    return [f"{folder.name}/" for folder in parts.values()]
