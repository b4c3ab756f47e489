"""Patch embedding (stride 16, or 4 in four-stage networks) and patch merging (stride 2)."""

from __future__ import annotations

import itertools
from collections import OrderedDict

from timm.layers import SqueezeExcite
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class PatchEmbed(nn.Sequential):
    """Strided 3x3 convolutions, (B, in_chans, H, W) to (B, dim, ceil(H / stride), ceil(W / stride)).

    Args:
        in_chans: Channels of the picture.
        dim: Output channels; each convolution has half the channels of the next one.
        stride: A power of two; each convolution halves the map.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 16):
        steps = stride.bit_length() - 1
        dims = [in_chans, *(dim // 2**i for i in reversed(range(steps)))]
        convs = [ConvNorm(i, o, 3, stride=2, relu=o < dim) for i, o in itertools.pairwise(dims)]
        # Checkpoints number the ReLUs between the convolutions, too.
        super().__init__(OrderedDict((str(2 * step), conv) for step, conv in enumerate(convs)))


class PatchMerging(nn.Module):
    """Halves the map by an inverted bottleneck with squeeze-and-excitation, (B, C, H, W) to (B, C', H/2, W/2).

    Args:
        dim: Input channels.
        out_dim: Output channels.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden = 4 * dim
        self.expand = ConvNorm(dim, hidden, relu=True)
        self.dw = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden, relu=True)
        self.se = SqueezeExcite(hidden, rd_ratio=1 / 4)
        self.project = ConvNorm(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.se(self.dw(self.expand(x))))
