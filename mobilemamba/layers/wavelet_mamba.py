"""WTE-Mamba: the wavelet-enhanced Mamba, the global part of the MRFFI module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemamba.ops.wavelet import are_haar, wavelet_conv
from mobilemamba.ops.wavelet.definition import wavelet_filters


class WaveletConv(nn.Module):
    """A depthwise convolution in the wavelet domain, for details that Mamba alone blurs; (B, C, H, W) in and out.

    The filters are frozen parameters, one set per channel, as in the released checkpoints and in the paper's counts.

    Args:
        dim: Channels.
        kernel_size: Odd kernel size of the convolution over the sub-bands.
        wavelet: PyWavelets name of an orthogonal wavelet.
    """

    backend = "auto"  # backend of ``wavelet_conv``

    def __init__(self, dim: int, kernel_size: int, wavelet: str = "db1"):
        super().__init__()
        filters = wavelet_filters(wavelet).unsqueeze(1).repeat(dim, 1, 1, 1)
        self.dwt_filters = nn.Parameter(filters, requires_grad=False)
        self.idwt_filters = nn.Parameter(filters.clone(), requires_grad=False)
        self.conv = nn.Conv2d(4 * dim, 4 * dim, kernel_size, padding=kernel_size // 2, groups=4 * dim, bias=False)
        self.scale = nn.Parameter(torch.full((1, 4 * dim, 1, 1), 0.1))

    @property
    def weight(self) -> Tensor:
        """The scaled kernels of the convolution, (4C, 1, k, k): the four sub-bands of each channel in turn."""
        return self.conv.weight * self.scale.view(-1, 1, 1, 1)

    @property
    def is_haar(self) -> bool:
        """Whether the filters' current values are Haar's, whatever the wavelet's name."""
        return are_haar(self.dwt_filters, self.idwt_filters)

    def forward(self, x: Tensor) -> Tensor:
        return wavelet_conv(x, self.weight, self.dwt_filters, self.idwt_filters, self.backend)


class WaveletMamba(nn.Module):
    """SS2D, scaled, plus the wavelet branch; (B, C, H, W) in and out.

    Args:
        ss2d: The state-space module, or a module that replaces it (Table 1 of the paper).
        wavelet_conv: The wavelet branch on the same input.
        dim: Channels.
    """

    def __init__(self, ss2d: nn.Module, wavelet_conv: WaveletConv, dim: int):
        super().__init__()
        self.ss2d = ss2d
        self.wavelet_conv = wavelet_conv
        self.scale = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.ss2d(x)
        return self.scale.to(mixed.dtype) * mixed + self.wavelet_conv(x)  # half precision under autocast
