"""The user's own callbacks and loggers: which one raised an exception, and what to tell the user about it."""

from __future__ import annotations

import contextlib
import errno
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mobilemamba.errors import ConfigError
from mobilemamba.files import check_writable
from mobilemamba.text import explain_encoding

_PACKAGE, _FOLDER = __name__.partition(".")[0], Path(__file__).parents[2]
#: Names of Lightning's local variables for the callback or logger that it is calling.
_CALLED = ("callback", "logger")
#: The system's error codes for a full disk, which is not the fault of a callback.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def culprit(error: BaseException) -> Callback | Logger | None:
    """Returns the callback or logger that raised an exception, ours or not; None if it was raised elsewhere."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("lightning.pytorch."):
            called = [frame.f_locals.get(name) for name in _CALLED]
            found = next((one for one in called if isinstance(one, Callback | Logger)), found)
    return found


def complaint(error: Exception) -> str | None:
    """Returns the message for an exception raised by a callback or logger that the user chose; None for others.

    During training this covers only Lightning's own classes: in a user's class the exception may be a bug, whose
    traceback is needed.
    """
    found, frames = culprit(error), traceback.extract_tb(error.__traceback__)
    if found is None or is_ours(found) or Path(frames[-1].filename).is_relative_to(_FOLDER):
        return None
    of_lightning = type(found).__module__.startswith("lightning.")
    if not of_lightning and any(frame.name == "_run_stage" for frame in frames):
        return None
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "errno", None) in _FULL:
        return None
    place = "" if of_lightning else f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    setting = "trainer.logger" if isinstance(found, Logger) else "trainer.callbacks"
    kind = "" if isinstance(error, MisconfigurationException) else f"{type(error).__name__}: "
    said = explain_encoding(" ".join(f"{kind}{error}".split()).rstrip("."))
    return f"{setting}: {type(found).__name__} fails: {said}{place}; change its settings, or leave it out"


def check_destination(checkpoint: Any, trainer: Trainer) -> None:
    """Checks that a callback will be able to write its files, by their folder and name.

    Args:
        checkpoint: One of the trainer's ``checkpoint_callbacks``.
        trainer: The trainer.

    Raises:
        ConfigError: If such a file cannot be written.
    """
    name = type(checkpoint).__name__
    if not isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO):
        return
    try:
        if isinstance(checkpoint, ModelCheckpoint):
            path = checkpoint.format_checkpoint_name({})
        else:
            path = str(getattr(checkpoint, "ckpt_path", ""))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"trainer.callbacks: {name}'s filename={checkpoint.filename!r} is no pattern of a name ({error}); expected "
            "for instance {epoch}-{val/loss:.3f}"
        ) from error
    if not path or "://" in path:
        return
    with contextlib.suppress(OSError, ValueError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    check_writable(Path(path), f"trainer.callbacks: {name} cannot write")


def is_ours(found: Callback | Logger | None) -> bool:
    """Whether a callback or logger is one of this package's."""
    return type(found).__module__.startswith(f"{_PACKAGE}.")
