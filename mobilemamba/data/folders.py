"""Listing folders of pictures: quick for millions of files, and in the same order on every system."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mobilemamba.data.pictures import EXTENSIONS
from mobilemamba.errors import DataError
from mobilemamba.text import printable

# Left behind by operating systems and archives, in addition to hidden files.
_JUNK = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
#: Result of :func:`why_no_folder` for a path that does not exist.
NOWHERE = "no such folder"
_FEW = 5  # number of names shown in a message


def why_no_folder(path: str | Path) -> str | None:
    """Returns what a path is instead of a folder, or None if it is one; takes any text, even an invalid path."""
    # Not pathlib, which raises an error for a name that is too long.
    if os.path.isdir(path):  # noqa: PTH112
        return None
    if not os.path.exists(path):  # noqa: PTH110
        return NOWHERE
    return "an archive, which has to be unpacked" if str(path).lower().endswith(_ARCHIVES) else "a file"


def scan_folder(folder: str | Path, left_out: Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """Returns the sorted paths of the pictures and of the folders directly in ``folder``.

    Hidden files and system files, which tools leave behind, are left out (.thumbnails, ._picture.jpg, __MACOSX).

    Args:
        folder: Folder to list.
        left_out: Counter of the other files by kind, mostly their file extension.

    Raises:
        DataError: If the folder cannot be read.
    """
    pictures: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _JUNK:
                    continue
                broken = _is_broken(entry)  # asked first, as a link to itself makes the other questions raise an error
                if not broken and entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS) and (broken or entry.is_file()):
                    pictures.append(entry.path)  # a broken link is reported when it is read
                elif left_out is not None:
                    left_out["broken links" if broken else _kind(entry)] += 1
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read ({error.strerror}): mend it or remove it") from error
    return sorted(pictures), sorted(folders)


def _kind(entry: os.DirEntry[str]) -> str:
    if not entry.is_file():
        return "no plain files"
    return Path(entry.name).suffix.lower() or "without an ending"


def _is_broken(link: os.DirEntry[str]) -> bool:
    return link.is_symlink() and not os.path.exists(link.path)  # noqa: PTH110


def class_folders(folder: Path) -> tuple[str, ...]:
    """Returns the sorted names of the folders in ``folder``.

    Raises:
        DataError: If there are none.
    """
    _, folders = scan_folder(folder)
    if not folders:
        shown = printable(folder)
        raise DataError(f"{shown} has no class folders: put the pictures of each class into {shown}/<class>/")
    return tuple(sorted(Path(path).name for path in folders))


def list_pictures(folder: str | Path, left_out: Counter[str] | None = None) -> list[str]:
    """Returns the paths of the pictures in ``folder``, then of those in each subfolder, without hidden ones.

    Args:
        folder: Folder to list. Links are followed.
        left_out: Counter of the other files, see :func:`scan_folder`.

    Raises:
        DataError: If a folder cannot be read, or a link leads back to a folder that contains it.
    """
    real = Path(folder).resolve()
    return _walk(str(folder), real, frozenset((real, *real.parents)), left_out)


def _walk(folder: str, real: Path, above: frozenset[Path], left_out: Counter[str] | None) -> list[str]:
    pictures, folders = scan_folder(folder, left_out)
    for inner in map(Path, folders):
        target = inner.resolve() if inner.is_symlink() else real / inner.name
        if target in above:
            raise DataError(f"{printable(inner)} links back to {printable(target)}, in which it lies: remove the link")
        pictures += _walk(str(inner), target, above | {target, *target.parents}, left_out)
    return pictures


def list_classes(
    folder: Path,
    labels: dict[str, int],
    *,
    every_class: bool,
    other_classes: str,
    left_out: Counter[str] | None = None,
) -> list[tuple[str, int]]:
    """Returns path and label of each picture in the class folders of ``folder``, class after class.

    Args:
        folder: Folder with a subfolder for each class, or for some of them.
        labels: Label of each class by its folder's name, as ``printable`` shows it, in the order of the result.
        every_class: Whether each folder must have pictures.
        other_classes: End of the error message for a folder that is none of the classes, with what to do.
        left_out: Counter of the other files, see :func:`scan_folder`.

    Raises:
        DataError: If a folder is none of the classes, or there are no pictures at all, or none of a class that must
            have some.
    """
    present = {name: printable(name) for name in class_folders(folder)}
    if unknown := [name for name, shown in present.items() if shown not in labels]:
        raise DataError(f"{printable(folder / unknown[0])} {other_classes}")
    listed = {
        name: list_pictures(folder / name, left_out) for name in sorted(present, key=lambda n: labels[present[n]])
    }
    empty = [name for name, pictures in listed.items() if not pictures]
    if empty and (every_class or len(empty) == len(listed)):
        raise DataError(
            f"{printable(folder / empty[0])} holds no pictures ({' '.join(EXTENSIONS)}): add some or remove the class"
        )
    return [(path, labels[present[name]]) for name, pictures in listed.items() for path in pictures]


def describe_left_out(left_out: Counter[str]) -> str | None:
    """Describes in one line the files that are no pictures by their names; None if there are none."""
    if not left_out:
        return None
    kinds = [f"{number:,} {printable(kind)}" for kind, number in left_out.most_common(_FEW)]
    more = ["others"] if len(left_out) > _FEW else []
    files = f"{left_out.total():,} file{'s' if left_out.total() > 1 else ''}"
    return f"left out, as no pictures by their names: {files} ({', '.join([*kinds, *more])})"


def few(names: Sequence[str]) -> str:
    """Joins the first few of some names for a message."""
    return ", ".join([*map(printable, names[:_FEW]), *(["..."] if len(names) > _FEW else [])])
