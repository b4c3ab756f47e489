"""Writing files so that a reader, or a run that goes on later, never meets half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes UTF-8 text so that ``path`` holds either its old content or all of the new one, also after a kill.

    The text goes to a temporary file in the same folder (a rename is atomic only within one file system), reaches the
    disk, and then takes the place of ``path``.

    Raises:
        OSError: If the folder is missing or cannot be written, or the disk is full; ``path`` is then as it was.
    """
    path = Path(path)
    # Not the tempfile module: its files are readable by their owner alone, and a rename keeps that.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
