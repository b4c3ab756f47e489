"""What a callback asks a trainer: the kind of its run, the number of its epoch, and its other callbacks."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

Kind = TypeVar("Kind")


def is_recorded(trainer: Trainer) -> bool:
    """Whether the trainer is in a recorded training: no sanity check, trial of a few batches or other command."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not is_trial(trainer)


def is_trial(trainer: Trainer) -> bool:
    """Whether this is a trial of a few batches (``fast_dev_run``), which writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Returns the trainer's callbacks of a class."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    return [callback for callback in found if isinstance(callback, kind)]


def epochs_begun(trainer: Trainer) -> int:
    """Returns the number of the current epoch, from 1; of the last epoch if the training is over or has none left.

    Unlike ``trainer.current_epoch``, it does not count up as soon as an epoch has ended.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.started)
