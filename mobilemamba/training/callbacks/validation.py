"""A training's validations: their records, and a final validation at the end."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

Kind = TypeVar("Kind")
#: Record of a validation: ``epoch`` (from 1), ``step`` (optimiser steps taken), and the metrics by their names.
Validation = dict[str, Any]


def counts(trainer: Trainer) -> bool:
    """Whether the trainer is in a recorded training: no sanity check, trial of a few batches or other command."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not is_trial(trainer)


def is_trial(trainer: Trainer) -> bool:
    """Whether this is a trial of a few batches (``fast_dev_run``), which writes nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Returns the trainer's callbacks of a class."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    return [callback for callback in found if isinstance(callback, kind)]


def validation_now(trainer: Trainer, monitor: str | None) -> Validation:
    """Returns the record of the validation that just ended, with the finite ones of ``monitor`` and ``val...`` metrics.

    A ``monitor`` that is logged per training epoch is left out, as its value is still that of the previous epoch.
    """
    if monitor is not None and is_of_epochs(trainer, monitor):
        monitor = None
    metrics = {
        name: float(f"{float(value):.7g}")  # the digits of single precision
        for name, value in trainer.callback_metrics.items()
        if (name.startswith("val") or name == monitor) and math.isfinite(value)
    }
    return {"epoch": epochs_begun(trainer), "step": trainer.global_step, **metrics}


def epochs_begun(trainer: Trainer) -> int:
    """Returns the number of the current epoch, from 1; of the last epoch if the training is over or has none left.

    Unlike ``trainer.current_epoch``, it does not count up as soon as an epoch has ended.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.started)


def is_of_epochs(trainer: Trainer, metric: str) -> bool:
    """Whether a metric is logged over a training epoch and by no validation, so that it is known at an epoch's end."""
    loop: Any = trainer.fit_loop.epoch_loop
    of_training, of_validation = (
        any(one.meta.on_epoch and metric in (one.meta.name, f"{one.meta.name}_epoch") for one in results.values())
        for results in (loop._results, loop.val_loop._results)
    )
    return of_training and not of_validation


class ValidateAtEnd(Callback):
    """Validates at the end of a training if its last step has not been validated and validation is enabled.

    This happens if a training ends within an epoch (``max_steps``, ``max_time``) or after an epoch without validation
    (``check_val_every_n_epoch``).
    """

    def __init__(self) -> None:
        self.validated_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validated_step = state_dict["validated_step"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if counts(trainer):
            self.validated_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation or is_trial(trainer) or self.validated_step == trainer.global_step:
            return
        trainer.validating = True  # as Lightning does within an epoch
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    on_fit_end = on_train_end  # if a resumed run has no step left to train, on_train_end is not called
