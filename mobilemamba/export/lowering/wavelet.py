"""The wavelet branch by depthwise convolutions of stride 2, without transposed ones; (B, C, H, W) to (B, H, W, C).

The transform, the convolution of the sub-bands and the inverse are linear and repeat every two pixels. So each of the
four pixels of a square is one convolution with twice the kernel: ``PhaseConv``. For large kernels it costs less to keep
the transform separate: ``BandConv``.

Shape letters: B batch, C channels, H and W sides, h and w half of them, P = 4 pixels of a square or sub-bands, F = 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.export.lowering import onnx_functions
from mobilemamba.export.lowering.convolution import conv2d
from mobilemamba.layers.wavelet_mamba import WaveletConv

#: The largest kernel for which one convolution per pixel is faster than one per sub-band between the transforms.
_SMALL = 3


def lowered_wavelet(conv: WaveletConv, bias_C: Tensor, *, any_size: bool = False) -> nn.Module:
    """Returns a module that computes ``conv(x) + bias`` in the fewest operators, channels last.

    Raises:
        ConfigError: If maps may have any size, and the filters cross their borders.
    """
    if any_size and conv.dwt_filters.shape[-1] > 2:
        raise ConfigError(
            "--size dynamic: the wavelet's filters run over the border, which is written out for one size; give the "
            "size in pixels"
        )
    if conv.dwt_filters.shape[-1] > 2:
        return _ChannelsLast(conv, bias_C)
    if any_size or conv.conv.kernel_size[0] <= _SMALL or not conv.is_haar:
        return PhaseConv(conv, bias_C, any_size=any_size)
    return BandConv(conv, bias_C)


class PhaseConv(nn.Module):
    """One depthwise convolution for each pixel of a square.

    Args:
        conv: A convolution in the wavelet domain whose filters have two taps.
        bias_C: Bias to add.
        any_size: Whether maps may have any size; see ``onnx_functions``.
    """

    def __init__(self, conv: WaveletConv, bias_C: Tensor, *, any_size: bool = False):
        super().__init__()
        self.any_size = any_size
        channels, kernel = len(bias_C), conv.conv.kernel_size[0]
        analysis, synthesis = (f.view(channels, 4, 2, 2).double() for f in (conv.dwt_filters, conv.idwt_filters))
        weight = conv.weight.view(channels, 4, kernel, kernel).double()
        # To pixel (p, q) from band b by tap (i, j), each of which reads pixels (r, s) of a square.
        phases = torch.einsum("cbpq,cbij,cbrs->pqcirjs", synthesis, weight, analysis)
        phases = phases.reshape(4, channels, 1, 2 * kernel, 2 * kernel).to(bias_C.dtype)
        self.padding = 2 * (kernel // 2)
        self.phases = nn.ModuleList(conv2d(phase, bias_C, stride=2, groups=channels) for phase in phases)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        before = self.padding
        # For any size, one more row and column, which change nothing if the sides are even.
        odd_height, odd_width = (1, 1) if self.any_size else (height % 2, width % 2)
        padded = F.pad(x, (before, before + odd_width, before, before + odd_height))
        phases = torch.cat([phase(padded) for phase in self.phases], 1)
        if self.any_size:
            return onnx_functions.join(phases, x).permute(0, 2, 3, 1)
        return _join(phases.permute(0, 2, 3, 1), height, width)


class BandConv(nn.Module):
    """The transform as one convolution per sub-band, the convolutions of these, and the inverse as a small product.

    Args:
        conv: A convolution in the wavelet domain with Haar's filters.
        bias_C: Bias to add.
    """

    def __init__(self, conv: WaveletConv, bias_C: Tensor):
        super().__init__()
        channels, kernel = len(bias_C), conv.conv.kernel_size[0]
        analysis = conv.dwt_filters.view(channels, 4, 1, 2, 2).transpose(0, 1)
        weight = conv.weight.view(channels, 4, 1, kernel, kernel).transpose(0, 1).flatten(0, 1)
        # The bias of the result, as a constant map, has these sub-bands.
        bias = (analysis.sum((2, 3, 4)) * bias_C).flatten()
        self.transform = nn.ModuleList(conv2d(band, None, stride=2, groups=channels) for band in analysis)
        self.bands = conv2d(weight, bias, padding=kernel // 2, groups=4 * channels)
        self.inverse = Inverse(conv.idwt_filters[:4].flatten(1).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        bands = self.bands(torch.cat([band(x) for band in self.transform], 1))
        return _join(self.inverse(bands), height, width)


class Inverse(nn.Module):
    """Computes the pixels of each square from its sub-bands, one after another; (B, 4C, h, w) to (B, h, w, 4C)."""

    def __init__(self, matrix_PP: Tensor):
        super().__init__()
        self.register_buffer("matrix_PP", matrix_PP)

    matrix_PP: Tensor

    def forward(self, bands: Tensor) -> Tensor:
        return (self.matrix_PP @ bands.permute(0, 2, 3, 1).unflatten(3, (4, -1))).flatten(3)


class _ChannelsLast(nn.Module):
    """The original layer plus the bias, with the channels last."""

    def __init__(self, conv: WaveletConv, bias_C: Tensor):
        super().__init__()
        self.conv = conv
        self.register_buffer("bias_C", bias_C)

    bias_C: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).permute(0, 2, 3, 1) + self.bias_C


def _join(phases_BhwF: Tensor, height: int, width: int) -> Tensor:
    """Joins the pixels of each square, which follow each other in the channels: (B, h, w, 4C) to (B, H, W, C)."""
    batch, h, w, features = phases_BhwF.shape
    rows = phases_BhwF.reshape(batch * h, w, 2, features // 2).transpose(1, 2)
    y = rows.reshape(batch, 2 * h, 2 * w, features // 4)
    if height % 2:
        y = y.narrow(1, 0, height)
    return y.narrow(2, 0, width) if width % 2 else y
