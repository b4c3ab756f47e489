"""How often a training logs what it logs each step."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LogInterval(Callback):
    """Sets ``log_every_n_steps`` to a tenth of an epoch, and to Lightning's 50 at the most.

    With Lightning's own default, a training whose epochs have fewer steps logs no learning rate and no gradient norm.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the number of steps is known: Lightning warns of too long an interval while it makes the loader."""
        _set(trainer, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            steps = min(steps, trainer.max_steps)
        _set(trainer, 50 if math.isinf(steps) else max(1, min(50, int(steps / 10))))


def _set(trainer: Any, interval: int) -> None:
    if trainer.log_every_n_steps:  # else nothing is to be logged
        trainer.log_every_n_steps = interval
