"""The feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class FFN(nn.Module):
    """Two 1x1 convolutions with norms and a ReLU in between; (B, C, H, W) in and out.

    Args:
        dim: Channels.
        ratio: Hidden channels divided by ``dim``.
    """

    def __init__(self, dim: int, ratio: float = 2.0):
        super().__init__()
        self.pw1 = ConvNorm(dim, int(dim * ratio), relu=True)
        self.pw2 = ConvNorm(int(dim * ratio), dim, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.pw1(x))
