"""PSPNet's head (Zhao et al., "Pyramid Scene Parsing Network", 2017) on the coarsest map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobilemamba.dense.classifier import PixelClassifier
from mobilemamba.dense.pooled import PooledConv
from mobilemamba.layers.conv_norm import ConvNorm


class PSPNetHead(nn.Module):
    """Joins the coarsest map to its averages over grids of 1, 2, 3 and 6 regions a side; maps to logits of its size.

    Args:
        channels: Channels of each map, the finest first; only the last one is read.
        num_classes: Classes.
        dim: Width.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int = 256):
        super().__init__()
        grids = (1, 2, 3, 6)
        self.pools = nn.ModuleList(PooledConv(channels[-1], dim, grid) for grid in grids)
        self.bottleneck = ConvNorm(channels[-1] + len(grids) * dim, dim, 3, relu=True)
        self.classifier = PixelClassifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        return self.classifier(self.bottleneck(torch.cat([x, *(pool(x) for pool in self.pools)], 1)))
