"""Steps that are better not taken: a loss or a gradient that is infinite or not a number."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from mobilemamba.data.base import data_of
from mobilemamba.errors import DivergedError
from mobilemamba.training.contract import TaskContract


class SkipNonFinite(Callback):
    """Leaves out a step whose gradients are not finite: weights, moments and norms' statistics stay as they were.

    The batch is named in a warning, the skipped steps are counted (``train/skipped_steps``, kept in checkpoints), and
    the training stops at a set number of them. In fp16, overflows with a finite loss are the loss scaler's ordinary
    search for a scale: it leaves them out by itself and they are not counted. Also logs ``train/grad_norm``, the
    gradients' norm before clipping.
    """

    def __init__(self, limit: int = 20) -> None:
        """Sets the limit.

        Args:
            limit: Number of skipped steps at which the training stops.
        """
        self.limit = limit
        self.skipped = 0
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._loss_finite: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the statistics that a bad batch would spoil for good."""
        network = pl_module.model if isinstance(pl_module, TaskContract) else pl_module
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the statistics before the batches of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._loss_finite = None
            if self._buffers:
                torch._foreach_copy_(self._kept, self._buffers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes whether the loss is finite, without waiting for the device."""
        finite = torch.isfinite(loss.detach()).all()
        self._loss_finite = finite if self._loss_finite is None else self._loss_finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the gradients away if they are not finite; every process decides alike, as they share the gradients.

        Raises:
            DivergedError: At the set number of skipped steps.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("train/grad_norm", norm)
        pl_module.log("train/skipped_steps", torch.tensor(float(self.skipped)))  # no copy to the device
        if torch.isfinite(norm):
            return
        loss_finite = self._loss_finite is None or bool(self._loss_finite)
        # Here all processes have come, so they may ask each other.
        everywhere = trainer.strategy.reduce_boolean_decision(loss_finite, all=True)
        if everywhere and getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        for parameter in parameters:
            parameter.grad = None
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        self.skipped += 1
        message = f"{_what(trainer, loss_finite)}: step {trainer.global_step} skipped, {self.skipped} so far"
        if not loss_finite or (everywhere and trainer.is_global_zero):
            warnings.warn(message, stacklevel=2)
        if self.skipped >= self.limit:
            raise DivergedError(
                f"{self.skipped} steps without a finite loss, the last in {_what(trainer, loss_finite)}; lower "
                "model.lr, use --trainer.precision bf16-mixed or 32-true, or look at the pictures named above; the "
                "last checkpoint is from before"
            )


def _what(trainer: Trainer, loss_finite: bool) -> str:
    """Which batch it was, as far as this process knows."""
    epoch, batch_idx = trainer.current_epoch, trainer.fit_loop.batch_idx
    value = "a gradient" if loss_finite else "the loss"
    place = f"epoch {epoch}, batch {batch_idx}"
    if trainer.world_size > 1:
        place += f", rank {trainer.global_rank}"
    data = data_of(trainer)
    names = [] if data is None else data.describe_batch(epoch, batch_idx)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{value} is not finite in {place}" + (f" ({shown})" if shown else "")
