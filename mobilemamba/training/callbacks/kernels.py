"""A message about the kernels that a run uses, so that a slow path never goes unnoticed."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.layers.kernels import describe_network


class SayKernels(Callback):
    """Prints once which kernels run and why no faster ones do, if the network has layers with kernels."""

    def __init__(self) -> None:
        self._said = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._said:
            return
        self._said = True
        # Under autocast, kernels accept half precision wherever they accept float32, the parameters' dtype.
        dtype = next((p.dtype for p in pl_module.parameters()), torch.float32)
        if line := describe_network(pl_module, trainer.strategy.root_device, dtype):
            rank_zero_info(line)

    on_fit_start = on_test_start = on_validation_start
