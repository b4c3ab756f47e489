"""The residual connection x + f(x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class Residual(nn.Module):
    """Adds a branch to its input.

    Args:
        branch: A module whose output has the input's shape.
        drop_path: Applied to the branch's output, for stochastic depth.
    """

    def __init__(self, branch: nn.Module, drop_path: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.drop_path = drop_path or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Folds a depthwise ConvNorm branch and the identity into one convolution; returns itself for any other."""
        branch = self.branch
        if not isinstance(branch, ConvNorm) or branch.relu or branch.conv.groups != branch.conv.in_channels:
            return self
        fused = branch.fuse()
        if not isinstance(fused, nn.Conv2d):
            return self
        height, width = fused.kernel_size
        fused.weight[:, 0, height // 2, width // 2] += 1  # the depthwise identity has 1 at the kernel's centre
        return fused
