"""Skips optimiser steps whose loss or gradients are infinite or not a number."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from mobilemamba.data.base import data_of
from mobilemamba.errors import DivergedError
from mobilemamba.training.contract import TaskContract


class _Place(NamedTuple):
    epoch: int
    batch: int
    step: int


class _Awaited(NamedTuple):
    found: Tensor  # on the host, valid after the event: whether the gradients and whether the loss are not finite
    event: Any
    place: _Place


class SkipNonFinite(Callback):
    """Skips steps whose gradients are not finite: weights, moments and norms' statistics stay unchanged.

    A warning names the batch, the skipped steps are counted (``train/skipped_steps``, kept in checkpoints), and the
    training stops after a given number of them. In fp16, overflows with a finite loss are part of the loss scaler's
    normal search for a scale: the scaler skips these steps itself, and they are not counted. Also logs
    ``train/grad_norm``, the norm of the gradients before clipping.

    With a fused optimiser on a GPU and no loss scaler, the GPU decides without making the host wait: warnings and the
    stop come ``LAG`` steps later, but always before a validation, a checkpoint and the end.
    """

    LAG = 2

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
        self._awaited: deque[_Awaited] = deque()
        self._trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        self._count_skipped(0)
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the norms' statistics, which a bad batch would corrupt permanently."""
        network = pl_module.model if isinstance(pl_module, TaskContract) else pl_module
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._trainer = trainer

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves the norms' statistics before the first batch of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._loss_finite = None
            if self._buffers:
                torch._foreach_copy_(self._kept, self._buffers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Records whether the loss is finite, without waiting for the device."""
        finite = torch.isfinite(loss.detach()).all()
        self._loss_finite = finite if self._loss_finite is None else self._loss_finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Removes gradients that are not finite; all processes decide alike, as they share the gradients.

        Raises:
            DivergedError: If the number of skipped steps reaches the limit.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        pl_module.log("train/grad_norm", norm)
        pl_module.log("train/skipped_steps", torch.tensor(float(self.skipped)))  # no copy to the device
        place = _Place(trainer.current_epoch, trainer.fit_loop.batch_idx, trainer.global_step)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled and self._leaves_it_to_device(norm, optimizer):
            self._awaited.append(self._skip_on_device(~norm.isfinite(), optimizer, place))
            self._count_skipped(self.LAG)
            return
        if torch.isfinite(norm):
            return
        loss_finite = self._loss_finite is None or bool(self._loss_finite)
        # All processes reach this point, so they can communicate.
        everywhere = trainer.strategy.reduce_boolean_decision(loss_finite, all=True)
        if everywhere and scaled:
            return
        for parameter in parameters:
            parameter.grad = None
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        self._count(trainer, place, loss_finite, everywhere)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count_skipped(0)

    on_train_epoch_end = on_train_end = on_validation_start

    def _leaves_it_to_device(self, norm: Tensor, optimizer: Optimizer) -> bool:
        """Whether the optimiser's own kernel can skip a step, so that the host need not know."""
        knows_how = hasattr(optimizer, "_step_supports_amp_scaling")  # PyTorch's fused ones have it, if only as False
        return norm.is_cuda and knows_how and all(group.get("fused") for group in optimizer.param_groups)

    def _skip_on_device(self, bad: Tensor, optimizer: Any, place: _Place) -> _Awaited:
        optimizer.found_inf, optimizer.grad_scale = bad.float(), None  # as a loss scaler does
        if self._buffers:
            before, now = (torch.cat([buffer.flatten() for buffer in those]) for those in (self._kept, self._buffers))
            parts = torch.where(bad, before, now).split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [x.view_as(y) for x, y in zip(parts, self._buffers, strict=True)])
        loss_bad = torch.zeros_like(bad) if self._loss_finite is None else ~self._loss_finite
        pinned = torch.empty(2, dtype=torch.bool, pin_memory=bad.is_cuda)
        pinned.copy_(torch.stack([bad, loss_bad]), non_blocking=True)
        event = torch.cuda.Event() if bad.is_cuda else None
        if event is not None:
            event.record()
        return _Awaited(pinned, event, place)

    def _count_skipped(self, lag: int) -> None:
        """Counts the steps that the device has skipped, without the last ``lag`` steps. All processes call it alike."""
        while len(self._awaited) > lag:
            found, event, place = self._awaited.popleft()
            if event is not None:
                event.synchronize()
            bad, loss_bad = found.tolist()
            if bad and self._trainer is not None:
                everywhere = self._trainer.strategy.reduce_boolean_decision(not loss_bad, all=True)
                self._count(self._trainer, place, not loss_bad, everywhere)

    def _count(self, trainer: Trainer, place: _Place, loss_finite: bool, everywhere: bool) -> None:
        self.skipped += 1
        what = _what(trainer, place, loss_finite)
        if not loss_finite or (everywhere and trainer.is_global_zero):
            warnings.warn(f"{what}: step {place.step} skipped, {self.skipped} so far", stacklevel=3)
        if self.skipped >= self.limit:
            raise DivergedError(
                f"{self.skipped} steps without a finite loss, the last in {what}; lower "
                "model.lr, use --trainer.precision bf16-mixed or 32-true, or look at the pictures named above; the "
                "last checkpoint is from before"
            )


def _what(trainer: Trainer, place: _Place, loss_finite: bool) -> str:
    """Describes the bad batch, as far as this process knows it."""
    value = "a gradient" if loss_finite else "the loss"
    where = f"epoch {place.epoch}, batch {place.batch}"
    if trainer.world_size > 1:
        where += f", rank {trainer.global_rank}"
    data = data_of(trainer)
    names = [] if data is None else data.describe_batch(place.epoch, place.batch)
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{value} is not finite in {where}" + (f" ({shown})" if shown else "")
