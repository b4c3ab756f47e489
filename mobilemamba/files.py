"""Writing files so that a reader, or a run that goes on later, never meets half of one."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.text import printable

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]  # who locks asks for it

_KINDS: dict[Callable[[int], bool], str] = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def why_no_plain_file(path: str | Path) -> str | None:
    """What there is at a path instead of a file, the links followed; None for a file.

    To open a pipe or a socket may wait for ever, and a device may never come to its end.

    Raises:
        OSError: If there is nothing.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - text that can be no path raises as any other
    return next((kind for is_kind, kind in _KINDS.items() if is_kind(mode)), None)


def write_atomic(path: str | Path, content: bytes | memoryview, before: Callable[[], object] | None = None) -> None:
    """Writes a file so that ``path`` holds either its old content or all of the new one, also after a kill.

    The content goes to a temporary file in the same folder (a rename is atomic only within one file system), reaches
    the disk, and then takes the place of ``path``.

    Args:
        path: The file.
        content: Of the file.
        before: Called when all is on the disk, before the name changes.

    Raises:
        OSError: If the folder is missing or cannot be written, or the disk is full; it names ``path``, which is then as
            it was.
    """
    path = Path(path)
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if before is not None:
                before()
            temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk's names no file


def write_text_atomic(path: str | Path, text: str) -> None:
    """:func:`write_atomic` of UTF-8 text.

    Raises:
        OSError: As there.
    """
    write_atomic(path, text.encode())


@contextmanager
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new file or folder beside ``path`` for what is to take its place; what is left of it at the end is removed.

    It is locked, by which :func:`remove_unfinished` knows it from what a killed process has left.

    Raises:
        OSError: If the folder that ``path`` is in is missing or cannot be written.
    """
    while True:
        temporary = _temporary(path)
        temporary.mkdir() if folder else temporary.touch(exist_ok=False)
        lock = _locked(temporary, wait=True)
        if temporary.exists():  # not taken, before it was locked, for a killed process's
            break
        _unlock(lock)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unlock(lock)


def remove_unfinished(path: Path) -> None:
    """Removes what killed processes have left of their writing ``path``, whose name may be a pattern.

    What a living one writes stays, and so does all where the file system has no locks, as NFS has none of folders.
    """
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}.tmp"):
        if (lock := _locked(left, wait=False)) is not None:
            with suppress(OSError):  # in a folder where only its owner may remove it
                _remove(left)
            _unlock(lock)


def _locked(path: Path, *, wait: bool) -> int | None:
    """The descriptor of a file or folder that no other process locks now; None where it is locked, or cannot be."""
    if fcntl is None:
        return None
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return lock
        except OSError:
            os.close(lock)
    return None


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """:func:`write_atomic` of JSON that people can read.

    Raises:
        OSError: As there.
    """
    write_text_atomic(path, json.dumps(content, indent=2) + "\n")


def check_writable(path: Path, name: str) -> None:
    """Refuses a file that could not be written, before the work for it is done; what is there stays untouched.

    Args:
        path: Of the file.
        name: What the message calls it, e.g. the option.

    Raises:
        ConfigError: With the reason.
    """
    try:
        with temporary_beside(path):
            pass
        remove_unfinished(path.with_name(glob.escape(path.name)))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except (OSError, ValueError) as error:
        reason = f"{getattr(error, 'strerror', None) or error}; choose another"
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            reason = f"there is no folder {printable(path.parent)}; make it, or choose another"
        raise ConfigError(f"{name} {printable(path)}: {reason}") from None


def make_folder(path: Path, name: str) -> None:
    """Makes a folder that results go to, before the work for them is done.

    Args:
        path: Of the folder.
        name: What the message calls it, e.g. the option.

    Raises:
        ConfigError: With the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name} {printable(path)}: {reason}; choose another folder") from None


def why_not_written(error: OSError) -> str:
    """The system's words for what could not be written, and the remedy."""
    reason = error.strerror or " ".join(str(error).split())
    hint = "make room on the disk" if error.errno == errno.ENOSPC else "choose a folder that exists and has room"
    return f"{reason}; {hint}"


def link_atomic(source: Path, target: Path) -> None:
    """Lets ``target`` be another name of the file ``source``, in place of what it was; a copy where links are unknown.

    Raises:
        OSError: If the folder cannot be written; ``target`` is then as it was.
    """
    temporary = _temporary(target)
    try:
        os.link(source, temporary)
        temporary.replace(target)
    except OSError:
        write_atomic(target, source.read_bytes())  # no hard links on this file system
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # Not the tempfile module: its files are readable by their owner alone, and a rename keeps that.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
