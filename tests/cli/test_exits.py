"""The end of a command as a program: one line of what the user can mend, and the exit code that a shell expects."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mobilemamba.cli.exits import console
from mobilemamba.errors import ConfigError, DivergedError, UnreadablePicturesError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command chooses for its whole process stays out of the other tests."""
    monkeypatch.setattr("mobilemamba.cli.exits.keep_freed_memory", lambda: None)
    monkeypatch.setattr("mobilemamba.cli.exits.silence_advertising", lambda: None)
    with warnings.catch_warnings():
        yield


def because(error: BaseException, cause: BaseException) -> BaseException:
    error.__context__ = cause
    return error


MEMORY = "out of memory; give smaller pictures, fewer of them at a time, or a smaller network"
ALLOWED = "choose a folder that you may write to, or have its permissions changed"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a=1: expected\n 2"), 2, "a=1: expected 2"),
        (DivergedError("the loss is nan"), 1, "the loss is nan"),
        (UnreadablePicturesError("2 of 3 pictures"), 1, "2 of 3 pictures"),
        (
            OSError(errno.ENOSPC, "Disk full", "runs/x"),
            1,
            "Disk full: runs/x; free some space or choose another folder",
        ),
        (OSError(errno.EDQUOT, "Quota", "x"), 1, "Quota: x; free some space or choose another folder"),
        (OSError(errno.EFBIG, "Large", "x"), 1, "Large: x; free some space or choose another folder"),
        (OSError(errno.ENOSPC, "Full"), 1, "Full: HERE; free some space or choose another folder"),
        (OSError(errno.EACCES, "Denied", "x"), 1, f"Denied: x; {ALLOWED}"),
        (OSError(errno.EROFS, "Read only", "x"), 1, f"Read only: x; {ALLOWED}"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, MEMORY),
        (because(RuntimeError("a worker"), MemoryError()), 2, MEMORY),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt(143, "go on with: x"), 143, "stopped; go on with: x"),
        (because(SystemExit(1), KeyboardInterrupt(129)), 129, "stopped"),  # Lightning's
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, console():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"mobilemamba: error: {said.replace('HERE', str(Path.cwd()))}\n"


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "a bug"), ValueError("a bug"), SystemExit(7)])
def test_anything_else_stays_as_it_is(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as ended, console():
        raise error
    assert ended.value is error
    assert not capsys.readouterr().err


def run(error: BaseException | None, *, is_read: bool) -> None:
    """Writes a line to a pipe, whose reader is there or has ended, and then raises the error, if any."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as read, os.fdopen(writer, "w") as stdout, contextlib.redirect_stdout(stdout):
        if not is_read:
            read.close()
        with console():
            sys.stdout.write("a line")
            if error is not None:
                raise error


@pytest.mark.parametrize("error", [None, because(SystemExit(1), BrokenPipeError())])  # the second is as rich ends
def test_an_output_without_a_reader_ends_quietly(
    error: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(error, is_read=False)
    assert ended.value.code == 128 + 13
    assert not capsys.readouterr().err


def test_another_pipe_that_breaks_is_a_bug() -> None:
    with pytest.raises(BrokenPipeError):
        run(BrokenPipeError(), is_read=True)
