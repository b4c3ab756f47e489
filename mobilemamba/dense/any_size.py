"""timm's EfficientFormer for pictures of any size, which in timm takes those of 224 px alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.models.efficientformer import Attention, EfficientFormerStage, Flat
from torch import Tensor, nn


class _Flat(Flat):
    """Remembers the size of the map whose cells it puts in a row."""

    grid: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        self.grid = x.shape[-2], x.shape[-1]
        return super().forward(x)


class _Attention(Attention):
    """Adds a bias for each distance of two cells, of rows and of columns, resampled from a table for 7 x 7 cells."""

    flat: tuple[_Flat]  # in a tuple, as it is not a part of this module

    def get_attention_biases(self, device: torch.device) -> Tensor:
        (flat,) = self.flat
        side = math.isqrt(self.attention_biases.shape[1])
        table = self.attention_biases.unflatten(1, (side, side))
        if flat.grid != (side, side):  # next to each other stays so, and from edge to edge too
            table = F.interpolate(table[None], flat.grid, mode="bilinear", align_corners=True)[0]
        rows, columns = (torch.arange(cells, device=device) for cells in flat.grid)
        rows, columns = ((cells[:, None] - cells).abs() for cells in (rows, columns))
        return table[:, rows[:, None, :, None], columns[:, None, :]].flatten(3).flatten(1, 2)


def take_any_size(model: nn.Module) -> None:
    """Has the attention of an EfficientFormer take maps of any size; in place, names of weights stay.

    Others of timm's models stay as they are.
    """
    for stage in model.modules():
        if not isinstance(stage, EfficientFormerStage):
            continue
        flats = [module for module in stage.blocks if isinstance(module, Flat)]
        for flat in flats:
            flat.__class__ = _Flat
        for attention in stage.modules():
            if isinstance(attention, Attention):
                attention.__class__ = _Attention
                attention.flat = tuple(flats)
