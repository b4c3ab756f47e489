"""The package's errors: each message names the value, what was expected and what to do.

The command line prints them as one line and exits with code 2; a library user catches :class:`MobileMambaError`.
"""

import difflib
import re
from collections.abc import Collection
from typing import Literal

#: How torch and the other runtimes say that memory does not do.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "Failed to allocate memory",
    "bad_alloc",
)


class MobileMambaError(Exception):
    """A mistake the user can mend, as opposed to a bug in the package."""


class ConfigError(MobileMambaError, ValueError):
    """An architecture, a training or a sweep setting that cannot work."""


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuses a value that is none of those known.

    Raises:
        ConfigError: With all of these, and the one that is likely meant.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name} {value!r}: expected one of: {', '.join(known)}{hint}")


class BackendUnavailableError(MobileMambaError, RuntimeError):
    """A backend was asked for by name and cannot run here."""


class WeightsError(MobileMambaError, RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


class MisfitError(WeightsError):
    """Weights do not fit the network that they are loaded into; a command replaces the remedy by one of its own.

    Args:
        reason: The file, and what does not fit.
        fits: What fits.
        remedy: What to do; by default for a user of Python.
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
    """Some of many pictures could not be read; what could be done was done with the others."""

    exit_code = 1


class DivergedError(MobileMambaError, RuntimeError):
    """A training that has no finite loss any more."""

    exit_code = 1


class StoppedError(MobileMambaError, RuntimeError):
    """The user stopped a command; what it had done by then is kept."""

    exit_code = 130


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it stems from, says that memory ran out, a GPU's or the machine's."""
    import torch  # not above: whoever imports errors alone need not wait for it

    while error is not None:
        said = isinstance(error, Exception) and any(words in str(error) for words in _NO_MEMORY)
        if said or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def user_error(error: BaseException | None) -> MobileMambaError | None:
    """The user's mistake that an exception stems from, if it stems from one.

    Found through the wrappers of jsonargparse (which quote the message) and of torch's data workers (which paste a
    whole traceback into it).
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
