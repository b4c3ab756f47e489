"""BatchNorm that uses the fastest backend in training, optionally followed by a ReLU."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from mobilemamba.ops.batch_norm import batch_norm


@register_notrace_module  # a single node for torch.fx, like PyTorch's own
class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's BatchNorm2d, with equal names and results (up to rounding), plus an optional ReLU on (B, C, H, W)."""

    backend = "auto"  # backend of ``batch_norm``

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        momentum, mean, variance, count = self.momentum, self.running_mean, self.running_var, self.num_batches_tracked
        ordinary = self.training and self.affine
        if not ordinary or momentum is None or mean is None or variance is None or count is None:
            y = super().forward(x)
            return F.relu(y) if relu else y
        self._check_input_dim(x)
        y = batch_norm(x, (mean, variance), (self.weight, self.bias), momentum, self.eps, relu, self.backend)
        count.add_(1)
        return y
