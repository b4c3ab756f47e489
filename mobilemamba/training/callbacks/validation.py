"""A training's validations: what each found and where it stood, and one at the end."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

Kind = TypeVar("Kind")
#: ``epoch`` (from 1) and ``step`` (optimiser steps taken), and the metrics by their names.
Validation = dict[str, Any]


def counts(trainer: Trainer) -> bool:
    """Whether what is going on is part of a training's record: no trial of a few batches, no other command."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not is_trial(trainer)


def is_trial(trainer: Trainer) -> bool:
    """Whether only a few batches are tried (``fast_dev_run``), which leave nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The trainer's callbacks of a kind."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by its connector
    return [callback for callback in found if isinstance(callback, kind)]


def validation_now(trainer: Trainer, monitor: str | None) -> Validation:
    """The validation that has just ended: its place, and the metrics named ``val...`` and ``monitor``, if finite.

    Without a ``monitor`` of training epochs, which then is still that of the epoch before.
    """
    if monitor is not None and is_of_epochs(trainer, monitor):
        monitor = None
    metrics = {
        name: float(f"{float(value):.7g}")  # as many digits as single precision has
        for name, value in trainer.callback_metrics.items()
        if (name.startswith("val") or name == monitor) and math.isfinite(value)
    }
    return {"epoch": epochs_begun(trainer), "step": trainer.global_step, **metrics}


def epochs_begun(trainer: Trainer) -> int:
    """The number of the present epoch, from 1; of the last one when the training is over, or goes on with none left.

    Not ``trainer.current_epoch``, which is that of the next one as soon as an epoch has ended.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.started)


def is_of_epochs(trainer: Trainer, metric: str) -> bool:
    """Whether the training logs this metric, and no validation does, over an epoch: it is known at an epoch's end."""
    loop: Any = trainer.fit_loop.epoch_loop
    of_training, of_validation = (
        any(one.meta.on_epoch and metric in (one.meta.name, f"{one.meta.name}_epoch") for one in results.values())
        for results in (loop._results, loop.val_loop._results)
    )
    return of_training and not of_validation


class ValidateAtEnd(Callback):
    """Validates at the end of a training whose last step has not been validated, where that can be done.

    So for a training that ends within an epoch (``max_steps``, ``max_time``) or after one that was not to be validated
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

    on_fit_end = on_train_end  # where a resume had no step left to train, and so no end of one
