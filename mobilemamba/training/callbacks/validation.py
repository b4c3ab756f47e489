"""A training's validations: their records, and a final validation at the end."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mobilemamba.training.callbacks.trainer_state import epochs_begun, is_recorded, is_trial

#: Record of a validation: ``epoch`` (from 1), ``step`` (optimiser steps taken), and the metrics by their names.
Validation = dict[str, Any]


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
        if is_recorded(trainer):
            self.validated_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation or is_trial(trainer) or self.validated_step == trainer.global_step:
            return
        trainer.validating = True  # as Lightning does within an epoch
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    on_fit_end = on_train_end  # if a resumed run has no step left to train, on_train_end is not called
