"""MK-DeConv: the multi-kernel depthwise convolution, the local part of the MRFFI module."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class MultiKernelConv(nn.Module):
    """Depthwise convolutions of several kernel sizes, each on its share of the channels (Table 8e of the paper).

    Each part is a convolution, norm and ReLU, then a 1x1 depthwise convolution and norm, i.e. a scale and a shift.
    (B, C, H, W) in and out.

    Args:
        dim: Channels.
        kernel_sizes: One odd kernel size per part; the parts' numbers of channels differ by at most one.
    """

    def __init__(self, dim: int, kernel_sizes: tuple[int, ...]):
        super().__init__()
        parts = len(kernel_sizes)
        self.dims = [dim // parts + (part < dim % parts) for part in range(parts)]
        # Checkpoints number the ReLU between the two convolutions as "1".
        self.parts = nn.ModuleList(
            nn.Sequential(OrderedDict({"0": ConvNorm(d, d, k, groups=d, relu=True), "2": ConvNorm(d, d, groups=d)}))
            for d, k in zip(self.dims, kernel_sizes, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0](x)
        return torch.cat([part(xs) for part, xs in zip(self.parts, x.split(self.dims, dim=1), strict=True)], dim=1)
