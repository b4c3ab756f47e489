"""The feature pyramid of detectors: the backbone's maps joined from the coarsest up, plus finer and coarser levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.dense.semantic_fpn import FPN


class Pyramid(FPN):
    """Computes levels (B, D, h, w), each twice as fine as the next, from the last of a list of maps, finest first.

    The joined maps become levels as in an ordinary feature pyramid. If the finest is not fine enough, transposed
    convolutions double it, without adding a map of the backbone. torchvision's pyramid has no place for these: its
    extra levels read the input maps or the results, but not the joined maps.

    Args:
        channels: Channels of each map that is read.
        doublings: Number of levels finer than the maps.
        halvings: Number of levels coarser than the maps.
        learned: Whether a coarser level is a 3x3 convolution of stride 2, the first of the coarsest map and the others
            of the level before; otherwise it is every second pixel of the level before.
        dim: Channels D.
    """

    def __init__(self, channels: Sequence[int], doublings: int, halvings: int, *, learned: bool, dim: int = 256):
        super().__init__(channels, dim)
        self.halvings = halvings
        self.doubling_blocks = nn.ModuleList(nn.ConvTranspose2d(dim, dim, 2, 2) for _ in range(doublings))
        self.finer_blocks = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(doublings))  # finest first
        inputs = [dim if i else channels[-1] for i in range(halvings if learned else 0)]
        self.coarser_blocks = nn.ModuleList(nn.Conv2d(in_chans, dim, 3, 2, 1) for in_chans in inputs)
        for block in (*self.doubling_blocks, *self.finer_blocks, *self.coarser_blocks):
            if isinstance(block, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(block.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(block.weight)
            nn.init.zeros_(block.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        taken = maps[-len(self.inner_blocks) :]
        joined = [block(x) for block, x in zip(self.inner_blocks, taken, strict=True)]
        for i in range(len(joined) - 1, 0, -1):
            joined[i - 1] = joined[i - 1] + F.interpolate(joined[i], joined[i - 1].shape[-2:], mode="nearest")
        finer = joined[:1]
        for block in self.doubling_blocks:
            finer.insert(0, block(finer[0]))
        levels = [block(x) for block, x in zip(self.finer_blocks, finer[:-1], strict=True)]
        levels += [block(x) for block, x in zip(self.layer_blocks, joined, strict=True)]
        coarser = taken[-1] if self.coarser_blocks else levels[-1]
        for i in range(self.halvings):
            coarser = self.coarser_blocks[i](coarser) if self.coarser_blocks else coarser[..., ::2, ::2]
            levels.append(coarser)
        return levels
