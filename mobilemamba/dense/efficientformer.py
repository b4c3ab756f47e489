"""Lets timm's EfficientFormer take pictures of any size; timm's takes only 224 px."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.efficientformer import Attention, EfficientFormer, EfficientFormerStage, Flat
from torch import Tensor, nn


class _Flat(Flat):
    """Remembers the size of the map that it flattens."""

    grid: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        self.grid = x.shape[-2], x.shape[-1]
        return super().forward(x)


class _Attention(Attention):
    """Adds a bias for each distance of two cells in rows and columns, resampled from a table for 7 x 7 cells."""

    flat: tuple[_Flat]  # in a tuple, so that it is no submodule

    def get_attention_biases(self, device: torch.device) -> Tensor:
        (flat,) = self.flat
        side = math.isqrt(self.attention_biases.shape[1])
        table = self.attention_biases.unflatten(1, (side, side))
        if flat.grid != (side, side):  # keeps the biases of distance 0 and from edge to edge
            table = F.interpolate(table[None], flat.grid, mode="bilinear", align_corners=True)[0]
        rows, columns = (torch.arange(cells, device=device) for cells in flat.grid)
        rows, columns = ((cells[:, None] - cells).abs() for cells in (rows, columns))
        return table[:, rows[:, None, :, None], columns[:, None, :]].flatten(3).flatten(1, 2)


class _EfficientFormer(EfficientFormer):
    """Pads pictures at the right and bottom to multiples of 32: timm takes the last map to be half the one before."""

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> list[Tensor]:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 32, 0, -height % 32))
        maps: Any = super().forward_intermediates(padded, *args, **{**options, "intermediates_only": True})
        strides = [padded.shape[-1] // each.shape[-1] for each in maps]
        return [
            each[..., : -(-height // stride), : -(-width // stride)] for each, stride in zip(maps, strides, strict=True)
        ]


def take_any_size(model: nn.Module) -> None:
    """Makes an EfficientFormer return maps of pictures of any size, in place; the names of weights stay the same.

    timm's other models are left as they are.
    """
    if isinstance(model, EfficientFormer):
        model.__class__ = _EfficientFormer
    for stage in model.modules():
        if not isinstance(stage, EfficientFormerStage):
            continue
        flats = [module for module in stage.blocks if isinstance(module, Flat)]
        for flat in flats:
            flat.__class__ = _Flat
        for attention in stage.modules():
            if isinstance(attention, Attention):
                changed: Any = attention
                changed.__class__, changed.flat = _Attention, tuple(flats)
