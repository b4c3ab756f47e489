"""BatchNorm that trains by this package's CPU kernel where that can be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.ops.batch_norm import batch_norm, runs_on


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, with names and numbers the same up to rounding, and a ReLU if asked; (B, C, H, W) in and out."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        momentum, mean, variance, count = self.momentum, self.running_mean, self.running_var, self.num_batches_tracked
        if momentum is None or mean is None or variance is None or count is None or not self._is_for_kernel(x):
            y = super().forward(x)
            return F.relu(y) if relu else y
        y, batch_mean, batch_variance = batch_norm(x, self.weight, self.bias, self.eps, relu)
        with torch.no_grad():
            mean.lerp_(batch_mean, momentum)
            variance.lerp_(batch_variance, momentum)
            count.add_(1)
        return y

    def _is_for_kernel(self, x: Tensor) -> bool:
        return self.training and self.affine and self.weight.dtype == torch.float32 and runs_on(x)
