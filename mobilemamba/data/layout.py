"""Detection of the folders of a data set's parts, by their usual names; ambiguous layouts are an error, not guessed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mobilemamba.data.folders import NOWHERE, few, scan_folder, why_no_folder
from mobilemamba.errors import DataError
from mobilemamba.text import printable

#: The names of each part's folder, in lower case; upper case is accepted too.
PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PART_NAMES.items() for name in names}
_LOOKED_INTO = 100
_LIKE_A_PART = re.compile(rf"(^|[^a-z])({'|'.join(PART_OF)}|trn|tst|dev|eval|evaluation|holdout)(set)?([^a-z]|$)")
_UNDERSTOOD = "name the parts train, val and test, with a folder for each class in them"
#: If folders have on average this fraction of all subfolder names, the subfolders are classes, and the folders parts.
_ALIKE = 0.75


class Layout(NamedTuple):
    """The existing folders of the parts, which contain class folders, and notes about other folders, one line each."""

    train: Path | None
    val: Path | None
    test: Path | None
    notes: list[str]


def require_folder(root: str, expected: str) -> Path:
    """Returns ``root`` as a path after checking that it is a folder.

    Args:
        root: Path given by the user.
        expected: What the folder should contain, for the error message.

    Raises:
        DataError: If it is no folder.
    """
    if reason := why_no_folder(root):
        but = f" but {reason}" if reason != NOWHERE else "" if Path(root).is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"data.root {printable(root)} is not a folder{but}: give one that holds {expected}")
    return Path(root)


def spread_share(number: int, fraction: float) -> set[int]:
    """Returns the indices of about a fraction of ``number`` pictures, evenly spaced; at least one, but never all."""
    count = min(number - 1, max(1, round(number * fraction)))
    return {(2 * i + 1) * number // (2 * count) for i in range(count)}


def find_parts(root: Path) -> dict[str, Path]:
    """Returns the folders directly in ``root`` that are named like the parts ``train``, ``val`` and ``test``.

    Raises:
        DataError: If two of them are named like the same part.
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
    """Returns the parts of ``root``; if it has none, its folders are the classes, all of them for training.

    Raises:
        DataError: If two folders are named like the same part; or if folders that would be used as classes are probably
            parts with other names, or data sets.
    """
    parts, folders = find_parts(root), [Path(path) for path in scan_folder(root)[1]]
    others = [folder for folder in folders if folder not in parts.values()]
    pictures_in = {folder: scan_folder(folder) for folder in parts.values()}
    if len(parts) == 1 and others and not any(folders for _, folders in pictures_in.values()):
        parts = {}  # then it is a class, such as "train" beside "car" and "bus"
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
    """Raises an error for a single class, for classes that are data sets with parts, and for parts with other names.

    Args:
        root: Folder of the class folders.
        classes: Names of the class folders.

    Raises:
        DataError: In these cases; says what to do instead.
    """
    # Not all of thousands of classes, as that takes long and the mistake is unlikely with so many.
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
    """Returns the folders in ``root`` if all of them are named similarly to parts, e.g. ``trn``, ``tst``; else none."""
    folders = [Path(path) for path in scan_folder(root)[1]]
    alike = _like_parts(folders)
    return [printable(folder) for folder in alike] if _all_parts(alike, folders) else []


def _like_parts(folders: list[Path]) -> dict[Path, str]:
    """Returns the folders whose names contain a part's name -> that part's name."""
    return {folder: found[2] for folder in folders if (found := _LIKE_A_PART.search(folder.name.lower()))}


def _all_parts(alike: dict[Path, str], folders: list[Path]) -> bool:
    return len(alike) == len(folders) and len(set(alike.values())) > 1


def _refuse_disguised_parts(folders: list[Path]) -> None:
    alike = _like_parts(folders)
    # A class may be named "bullet train"; its folder then contains pictures, and other classes have other names.
    flat = _all_parts(alike, folders)
    if hiding := [folder for folder in alike if flat or _holds_folders_alone(folder)]:
        raise DataError(f"{printable(hiding[0])} looks like a part of a data set rather than a class: {_UNDERSTOOD}")


def _refuse_unknown_parts(root: Path, names: Sequence[str]) -> None:
    """Raises an error for folders that contain subfolders of the same names: ``fold1/cat``, ``fold2/cat``."""
    inner: list[set[str]] = []
    for name in names if len(names) <= _LOOKED_INTO else ():
        pictures, folders = scan_folder(root / name)
        if len(pictures) >= len(folders):
            return  # it is a class, perhaps with folders beside its pictures
        inner.append({Path(path).name for path in folders})
    alike = sorted(set().union(*inner))
    # A single common name is not a class: Tiny ImageNet has <class>/images/.
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
