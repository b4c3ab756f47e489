"""Files and folders that take their names when they are complete, several of them together."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobilemamba.errors import WeightsError
from mobilemamba.files import remove_unfinished, temporary_beside, why_not_written
from mobilemamba.text import printable


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path of the target's name in a folder beside it, from which all files move to their places at the end.

    The one that is named comes last, and is away while the others change: under its name stands the old or the new
    export, or none, but never a part. What killed processes have left of such folders is removed.

    Args:
        target: The file or folder that is named.

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
            if (others or path.is_dir()) and os.path.lexists(target):
                os.replace(target, folder / f"{target.name}.former")  # noqa: PTH105
            for file in (*others, path):
                os.replace(file, target.with_name(file.name))  # noqa: PTH105
    except OSError as error:
        raise WeightsError(f"cannot write {printable(target)}: {why_not_written(error)}") from None


def _reach_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
