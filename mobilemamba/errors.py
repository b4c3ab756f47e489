"""The package's errors: each message names the value, what was expected and what to do.

The command line prints them as one line and exits with code 2; a library user catches :class:`MobileMambaError`.
"""

import difflib
import re
from collections.abc import Collection
from typing import Literal

#: Description of every lack of memory.
OUT_OF_MEMORY = "out of memory"
#: Phrases by which torch and the other runtimes report a lack of memory.
_NO_MEMORY = (
    OUT_OF_MEMORY,
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "Failed to allocate memory",
    "bad_alloc",
)


class MobileMambaError(Exception):
    """A mistake that the user can correct, as opposed to a bug in the package."""


class ConfigError(MobileMambaError, ValueError):
    """An invalid option, or setting of an architecture, a training or a sweep."""


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Checks that a value is one of the known ones.

    Raises:
        ConfigError: If it is not; lists the known values, and suggests the one that was probably meant.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name} {value!r}: expected one of: {', '.join(known)}{hint}")


class BackendUnavailableError(MobileMambaError, RuntimeError):
    """A backend that was requested by name cannot run here."""


class WeightsError(MobileMambaError, RuntimeError):
    """A checkpoint cannot be read or written, or does not fit the model."""


class MisfitError(WeightsError):
    """Weights are of another network than the one to load them into; each command may give its own remedy.

    Args:
        reason: The file, and what does not fit.
        fits: Which part of the weights fits.
        remedy: What to do; by default in terms of the Python functions.
    """

    def __init__(self, reason: str, fits: Literal["nothing", "some", "backbone"], remedy: str | None = None) -> None:
        in_python = {
            "nothing": "use the model these weights are of",
            "some": "use the model these weights are of, or load what fits by partial=True",
            "backbone": "start with a fresh classifier by new_head=True",
        }
        super().__init__(f"{reason}; {remedy or in_python[fits]}")
        self.reason, self.fits = reason, fits


class DataError(MobileMambaError, RuntimeError):
    """A data set is missing, empty, inconsistent or unreadable."""


class UnreadablePicturesError(DataError):
    """Some of many pictures could not be read; the others were processed."""

    exit_code = 1


class DivergedError(MobileMambaError, RuntimeError):
    """A training no longer has a finite loss."""

    exit_code = 1


class StoppedError(MobileMambaError, RuntimeError):
    """The user stopped a command; its results so far are kept."""

    exit_code = 130


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, reports that a GPU or the machine ran out of memory."""
    import torch  # imported here, so that importing only the errors is fast

    while error is not None:
        said = isinstance(error, Exception) and any(words in str(error) for words in _NO_MEMORY)
        if said or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_one_line(error: BaseException) -> str:
    """Describes any exception in one short line, for a report that goes on after it."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def user_error(error: BaseException | None) -> MobileMambaError | None:
    """Returns the user's mistake that caused an exception, or None if it was not caused by one.

    Looks through the exceptions of jsonargparse (which quote the message) and of torch's data workers (whose message
    contains a whole traceback).
    """
    while error is not None:
        if isinstance(error, MobileMambaError):
            text = str(error)
            if "Original Traceback" not in text:
                return error
            last = text.strip().splitlines()[-1]
            return type(error)(re.sub(r"^[\w.]+Error: ", "", last))
        error = error.__cause__ or error.__context__
    return None
