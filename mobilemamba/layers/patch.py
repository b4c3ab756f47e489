"""Patch embedding (stride 16) and patch merging (stride 2)."""

from __future__ import annotations

from timm.layers import SqueezeExcite
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class PatchEmbed(nn.Sequential):
    """Four strided 3x3 convolutions, (B, in_chans, H, W) to (B, dim, ceil(H / 16), ceil(W / 16)).

    Args:
        in_chans: Channels of the picture.
        dim: Output channels; the steps before have an eighth, a quarter and a half of them.
    """

    def __init__(self, in_chans: int, dim: int):
        super().__init__(
            ConvNorm(in_chans, dim // 8, 3, stride=2),
            nn.ReLU(),
            ConvNorm(dim // 8, dim // 4, 3, stride=2),
            nn.ReLU(),
            ConvNorm(dim // 4, dim // 2, 3, stride=2),
            nn.ReLU(),
            ConvNorm(dim // 2, dim, 3, stride=2),
        )


class PatchMerging(nn.Module):
    """Halves the map by an inverted bottleneck with squeeze-and-excitation, (B, C, H, W) to (B, C', H/2, W/2).

    Args:
        dim: Input channels.
        out_dim: Output channels.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        hidden = 4 * dim
        self.expand = ConvNorm(dim, hidden)
        self.act = nn.ReLU()
        self.dw = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden)
        self.se = SqueezeExcite(hidden, rd_ratio=1 / 4)
        self.project = ConvNorm(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.expand(x))
        x = self.act(self.dw(x))
        return self.project(self.se(x))
