"""Says which kernels a run uses, so that the slow path is never silent."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.layers.kernels import describe_network


class SayKernels(Callback):
    """Says once which kernels run and why no faster ones do, if the network has layers that there are kernels for."""

    def __init__(self) -> None:
        self._said = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._said:
            return
        self._said = True
        # Of half precisions under autocast the kernels take what they take of float32.
        dtype = next((p.dtype for p in pl_module.parameters()), torch.float32)
        if line := describe_network(pl_module, trainer.strategy.root_device, dtype):
            rank_zero_info(line)

    on_fit_start = on_test_start = on_validation_start
