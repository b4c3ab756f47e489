"""New memory without a first value."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class UnfilledMemory(Callback):
    """Turns off, on a GPU, that deterministic algorithms fill all new memory, which only shows errors of operators.

    In a step of T2 these would be 1,643 kernels more, as counted on a CPU. Done in every process, as those that
    ``ddp_spawn`` starts take over only whether algorithms are deterministic.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no stub of it
