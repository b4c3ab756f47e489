"""The end of a command: the user's mistakes as one line, and the exit codes that a shell expects."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mobilemamba.allocator import keep_freed_memory
from mobilemamba.errors import MobileMambaError, is_out_of_memory, user_error
from mobilemamba.signals import stop_on_signals


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Context manager for running a command as a program: a mistake is printed as one line, with exit code 2."""
    silence_advertising()
    former, warnings.showwarning = warnings.showwarning, _show_warning
    keep_freed_memory()
    try:
        with stop_on_signals():
            yield
            sys.stdout.flush()
    except MobileMambaError as error:
        _fail(str(user_error(error)), getattr(error, "exit_code", 2))
    except KeyboardInterrupt as error:
        _stopped(error)
    except SystemExit as error:  # raised by Lightning on Ctrl-C, and by rich on a broken pipe
        if isinstance(error.__context__, KeyboardInterrupt):
            _stopped(error.__context__)
        if isinstance(error.__context__, BrokenPipeError):
            end_without_reader()
        raise
    except BrokenPipeError:
        if not _has_no_reader():  # then another pipe has broken, which is a bug
            raise
        end_without_reader()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        remedy = "free some space or choose another folder"
        if error.errno in (errno.EACCES, errno.EROFS):
            remedy = "choose a folder that you may write to, or have its permissions changed"
        _fail(f"{error.strerror}: {error.filename or Path.cwd()}; {remedy}", 1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _fail("out of memory; give smaller pictures, fewer of them at a time, or a smaller network", 2)
    finally:
        warnings.showwarning = former


def end_without_reader() -> NoReturn:
    """Exits if the reader of the output, such as ``head``, has ended, with the code that a shell expects."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for output that is not flushed yet
    sys.exit(141)


def silence_advertising() -> None:
    """Suppresses messages at each start of Lightning that users cannot act on; Lightning has no option for this."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search(r"\b(litlogger|litmodels)\b", record.getMessage()))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Prints a warning for users as one line, without the place in the code, which tells them nothing."""
    if not issubclass(category, DeprecationWarning):
        sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def _has_no_reader() -> bool:
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are reported even without an event mask
    return bool(pipe.poll(0))


def _stopped(error: KeyboardInterrupt) -> None:
    """Exits after a signal, with the exit code and the hint on how to continue from the exception's arguments."""
    code, *hints = error.args or (130,)
    _fail("; ".join(["stopped", *hints]), code)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"mobilemamba: error: {line}\n")
    sys.exit(code)
