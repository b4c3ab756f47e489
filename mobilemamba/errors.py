"""The package's errors: each message names the value, what was expected and what to do.

The command line prints them as one line and exits with code 2; a library user catches :class:`MobileMambaError`.
"""


class MobileMambaError(Exception):
    """A mistake the user can mend, as opposed to a bug in the package."""


class ConfigError(MobileMambaError, ValueError):
    """An architecture, a training or a sweep setting that cannot work."""


class BackendUnavailableError(MobileMambaError, RuntimeError):
    """A backend was asked for by name and cannot run here."""


class WeightsError(MobileMambaError, RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


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
