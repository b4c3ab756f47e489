"""Averages of a map over a grid, by which PSPNet and DeepLabv3 see the whole picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class PooledConv(nn.Sequential):
    """Averages a grid of regions, applies a 1x1 ConvNorm with ReLU, and resizes back; (B, C, h, w) to (B, D, h, w).

    Args:
        in_chans: Channels C of the map.
        dim: Channels D of the result.
        grid: Regions along a side; 1 averages the whole map.
    """

    def __init__(self, in_chans: int, dim: int, grid: int = 1):
        super().__init__(nn.AdaptiveAvgPool2d(grid), ConvNorm(in_chans, dim, relu=True))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), x.shape[-2:], mode="bilinear")
