"""Writes files and folders that get their names only when complete, several of them together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobilemamba.errors import WeightsError
from mobilemamba.files import one_at_a_time, remove_unfinished, temporary_beside, why_not_written
from mobilemamba.text import printable


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a path of the target's name in a folder beside it, from which all files are moved into place at the end.

    The target itself is moved last, and is absent while the others change: its name stands for the old export or the
    new one, or does not exist, but never for a part. Such folders that killed processes left behind are removed.

    Args:
        target: The file or folder to write.

    Raises:
        WeightsError: If they cannot be written.
    """
    try:
        remove_unfinished(target.with_name(glob.escape(target.name)))
        with temporary_beside(target, folder=True) as folder:
            path = folder / target.name
            yield path
            others = [file for file in folder.iterdir() if file != path]
            for file in folder.rglob("*"):
                if file.is_file():
                    _reach_disk(file)
            with one_at_a_time(target.parent):  # else the files of two exports of one name could be mixed
                if (others or path.is_dir()) and os.path.lexists(target):
                    os.replace(target, folder / f"{target.name}.former")  # noqa: PTH105
                for file in (*others, path):
                    os.replace(file, target.with_name(file.name))  # noqa: PTH105
    except OSError as error:
        raise WeightsError(f"cannot write {printable(target)}: {why_not_written(error)}") from None


def _reach_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
