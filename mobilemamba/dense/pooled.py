"""Averages of a map over a grid, by which PSPNet and DeepLabv3 see the whole picture, and maps of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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
        super().__init__(GridMeans(grid), ConvNorm(in_chans, dim, relu=True))

    def forward(self, x: Tensor) -> Tensor:
        return resize(super().forward(x), x.shape[-2:])


class GridMeans(nn.AdaptiveAvgPool2d):
    """Averages a square grid of regions of a map, (B, C, h, w) to (B, C, grid, grid)."""

    def __init__(self, grid: int):
        super().__init__(grid)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if _by_pytorch(x):
            return super().forward(x)
        return _by_products(x, (self.grid, self.grid), F.adaptive_avg_pool1d)


class Doubling(nn.Upsample):
    """Doubles the height and width of a map (B, C, h, w) as :func:`resize` does."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _by_pytorch(x) else resize(x, [2 * side for side in x.shape[-2:]])


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a map (B, C, h, w) to a height and width, bilinearly between the centres of pixels."""
    if _by_pytorch(x):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return _by_products(x, size, lambda line, new: F.interpolate(line, new, mode="linear", align_corners=False))


def _by_pytorch(x: Tensor) -> bool:
    """Whether PyTorch's own functions scale a map well.

    On a GPU under deterministic algorithms, a run's default, ``interpolate`` takes ten times the time and memory: it
    gathers four values for each of the result and later sorts them to sum their gradients. The gradient of adaptive
    pooling stays one of no fixed order.
    """
    return not (x.is_cuda and torch.are_deterministic_algorithms_enabled())


def _by_products(x: Tensor, size: Sequence[int], scaled: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Scales a map (B, C, h, w) by a matrix product for each direction, in float32 or better.

    Args:
        x: The map.
        size: The new height and width.
        scaled: Scales lines (1, n, length) to a new length; linear, so that it is known by what it makes of ones.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        ones = (torch.eye(side, dtype=wide.dtype, device=x.device) for side in x.shape[-2:])
        rows_hH, columns_wW = (scaled(one[None], new)[0] for one, new in zip(ones, size, strict=True))
        return (rows_hH.T @ (wide @ columns_wW)).to(x.dtype)
