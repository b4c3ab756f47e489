"""The logging interval of a training."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LogInterval(Callback):
    """Sets ``log_every_n_steps`` to a tenth of an epoch, but at most to Lightning's default of 50.

    With that default, a training whose epochs are shorter would log no learning rate and no gradient norm.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets 1 until the number of steps is known, as Lightning's loader setup warns of too long an interval."""
        _set(trainer, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            steps = min(steps, trainer.max_steps)
        _set(trainer, 50 if math.isinf(steps) else max(1, min(50, int(steps / 10))))


def _set(trainer: Any, interval: int) -> None:
    if trainer.log_every_n_steps:  # 0 turns logging off
        trainer.log_every_n_steps = interval
