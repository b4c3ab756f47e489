"""Atomic writing of files, so that neither a reader nor a resumed run ever finds an incomplete one."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.text import printable

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]  # checked before locking

_KINDS: dict[Callable[[int], bool], str] = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def why_no_plain_file(path: str | Path) -> str | None:
    """Returns what a path is instead of a regular file, following links, or None for a regular file.

    Opening a pipe or a socket may block forever, and a device may have no end.

    Raises:
        OSError: If the path does not exist.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - raises an OSError or ValueError even for an invalid path
    return next((kind for is_kind, kind in _KINDS.items() if is_kind(mode)), None)


def write_atomic(path: str | Path, content: bytes | memoryview, before: Callable[[], object] | None = None) -> None:
    """Writes a file so that ``path`` has either its old or its whole new content, even if the process is killed.

    The content is written to a temporary file in the same folder (a rename is atomic only within one file system),
    flushed to disk, and then renamed to ``path``.

    Args:
        path: The file.
        content: Content of the file.
        before: Called when the content is on disk, before the file is renamed.

    Raises:
        OSError: If the folder is missing or not writable, or the disk is full; names ``path``, which is then unchanged.
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
        raise OSError(error.errno, error.strerror, str(path)) from None  # the error of a full disk names no file


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with :func:`write_atomic`.

    Raises:
        OSError: In the same cases.
    """
    write_atomic(path, text.encode())


@contextmanager
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Context manager of a temporary file or folder beside ``path``, to be renamed to it; removed if it still exists.

    It is locked, so that :func:`remove_unfinished` can distinguish it from what a killed process has left.

    Raises:
        OSError: If the folder of ``path`` is missing or not writable.
    """
    while True:
        temporary = _temporary(path)
        temporary.mkdir() if folder else temporary.touch(exist_ok=False)
        lock = _locked(temporary, wait=True)
        if temporary.exists():  # otherwise it was removed, before it was locked, as that of a killed process
            break
        _unlock(lock)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _unlock(lock)


def remove_unfinished(path: Path) -> None:
    """Removes temporary files and folders of ``path``, whose name may be a pattern, that killed processes have left.

    Those of running processes stay, and so do all if the file system does not support locks, e.g. NFS for folders.
    """
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}.tmp"):
        if (lock := _locked(left, wait=False)) is not None:
            with suppress(OSError):  # in some folders, only the owner of a file may remove it
                _remove(left)
            _unlock(lock)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Context manager that threads and processes enter one by one for the same folder, where it supports locks."""
    lock = _locked(folder, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def _locked(path: Path, *, wait: bool) -> int | None:
    """Locks a file or folder and returns its descriptor; None if another process locks it, or locks are unsupported."""
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
    """Reads a JSON object; empty if the file is missing or contains none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON with :func:`write_atomic`.

    Raises:
        OSError: In the same cases.
    """
    write_text_atomic(path, json.dumps(content, indent=2) + "\n")


def has_ending(path: Path, *endings: str) -> bool:
    """Whether a path ends in one of some endings such as ``.csv``, in small or capital letters."""
    return path.suffix.lower() in endings


def check_writable(path: Path, name: str, endings: Collection[str] = ()) -> None:
    """Checks that a file can be written, before the work for it is done; leaves an existing file unchanged.

    Args:
        path: Path of the file. ``-`` is refused, as no command writes a file to standard output.
        name: Name of the file in the message, e.g. the option.
        endings: Endings of which the path must have one, see :func:`has_ending`, if any are given.

    Raises:
        ConfigError: If it cannot be written; gives the reason.
    """
    _refuse_dash(path, name, "file")
    if endings and not has_ending(path, *endings):
        raise ConfigError(f"{name} {printable(path)}: expected a name that ends in {' or '.join(endings)}")
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
    """Creates a folder for results, before the work for them is done.

    Args:
        path: Path of the folder. ``-`` is refused, as no command writes to standard output instead.
        name: Name of the folder in the message, e.g. the option.

    Raises:
        ConfigError: If it cannot be created; gives the reason.
    """
    _refuse_dash(path, name, "folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name} {printable(path)}: {reason}; choose another folder") from None


def _refuse_dash(path: Path, name: str, what: str) -> None:
    if str(path) == "-":
        raise ConfigError(f"{name} -: results are not written to standard output; give the name of a {what}")


def why_not_written(error: OSError) -> str:
    """Returns the system's reason for an error of writing, and a remedy."""
    reason = error.strerror or " ".join(str(error).split())
    hint = "make room on the disk" if error.errno == errno.ENOSPC else "choose a folder that exists and has room"
    return f"{reason}; {hint}"


def link_atomic(source: Path, target: Path) -> None:
    """Replaces ``target`` atomically by a hard link to ``source``, or by a copy if links are not supported.

    Raises:
        OSError: If the folder is not writable; ``target`` is then unchanged.
    """
    temporary = _temporary(target)
    try:
        os.link(source, temporary)
        temporary.replace(target)
    except OSError:
        write_atomic(target, source.read_bytes())  # this file system has no hard links
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # Not the tempfile module, whose files are readable only by their owner, even after a rename.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
