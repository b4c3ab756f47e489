"""One level of the two-dimensional discrete wavelet transform for orthogonal wavelets, and its inverse.

Signals are periodic; an odd side is first padded by one row or column of zeros at its end. The transform is
orthonormal, so its inverse is its transpose, and reconstruction is exact for every size.

Shape letters: B batch, C channels, H and W sides (h and w after the transform), F filter length.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.errors import ConfigError

_SIGNS = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
#: Haar's four filters, equal to ``wavelet_filters("db1")``.
HAAR = torch.tensor(_SIGNS, dtype=torch.float32, device="cpu").view(4, 2, 2) / 2


@cache
def _orthogonal_wavelet(name: str) -> pywt.Wavelet:
    families = [n for n in pywt.wavelist(kind="discrete") if n.startswith(("haar", "db", "sym", "coif"))]
    if name not in pywt.wavelist(kind="discrete"):
        raise ConfigError(
            f"unknown wavelet {name!r}; expected 'none' or an orthogonal one such as {', '.join(families[:5])}"
        )
    wavelet = pywt.Wavelet(name)
    if not wavelet.orthogonal:
        raise ConfigError(f"wavelet {name!r} is not orthogonal, so its inverse is not its transpose; use e.g. 'db1'")
    return wavelet


def wavelet_filters(name: str) -> Tensor:
    """Returns the four analysis filters of an orthogonal wavelet; the synthesis filters are the same.

    Args:
        name: PyWavelets name, e.g. ``"db1"`` (Haar).

    Returns:
        (4, F, F) float32: sub-bands LL, HL (high along H), LH (high along W), HH, to be correlated with the picture.

    Raises:
        ConfigError: If PyWavelets does not know the name, or the wavelet is not orthogonal.
    """
    wavelet = _orthogonal_wavelet(name)
    # PyWavelets convolves, torch correlates: reversed decomposition filters are the reconstruction filters.
    low, high = (torch.tensor(np.array(f), dtype=torch.float64) for f in (wavelet.rec_lo, wavelet.rec_hi))
    pairs = ((low, low), (high, low), (low, high), (high, high))  # (along H, along W)
    return torch.stack([torch.outer(along_h, along_w) for along_h, along_w in pairs]).float()


def haar_filters(channels: int, like: Tensor) -> Tensor:
    """Returns Haar's filters for a number of channels, (4C, 1, 2, 2), with the dtype and device of ``like``."""
    return HAAR.to(like).repeat(channels, 1, 1).unsqueeze(1)


def dwt2d(x_BCHW: Tensor, filters: Tensor) -> Tensor:
    """Applies the forward transform.

    Args:
        x_BCHW: Picture or feature map of any size.
        filters: (4C, 1, F, F): four filters for each channel in turn.

    Returns:
        (B, 4C, h, w) with h = ceil(H / 2), w = ceil(W / 2); the four sub-bands of a channel stand next to each other.
    """
    channels, taps = x_BCHW.shape[1], filters.shape[-1]
    x_BCHW = F.pad(x_BCHW, (0, x_BCHW.shape[3] % 2, 0, x_BCHW.shape[2] % 2))
    if taps > 2:  # Haar's windows do not overlap; longer filters cross the border and wrap around
        for dim in (2, 3):
            side = x_BCHW.shape[dim]
            x_BCHW = x_BCHW.index_select(dim, torch.arange(side + taps - 2, device=x_BCHW.device) % side)
    return F.conv2d(x_BCHW, filters, stride=2, groups=channels)


def idwt2d(y_BChw: Tensor, filters: Tensor, size: tuple[int, int]) -> Tensor:
    """Applies the inverse transform.

    Args:
        y_BChw: (B, 4C, h, w) sub-bands as ``dwt2d`` returns them.
        filters: (4C, 1, F, F), the filters of the forward transform.
        size: (H, W) to return; H is 2h or 2h - 1.

    Returns:
        (B, C, H, W).
    """
    channels, before = filters.shape[0] // 4, filters.shape[-1] // 2 - 1
    if before:  # what crosses the border wraps around to the beginning
        for dim in (2, 3):
            side = y_BChw.shape[dim]
            y_BChw = y_BChw.index_select(dim, torch.arange(-before, side, device=y_BChw.device) % side)
    x = F.conv_transpose2d(y_BChw, filters, stride=2, groups=channels)
    return x[:, :, 2 * before : 2 * before + size[0], 2 * before : 2 * before + size[1]]


def wavelet_conv(x_BCHW: Tensor, weight: Tensor, dwt_filters: Tensor, idwt_filters: Tensor) -> Tensor:
    """Applies the three steps by PyTorch's convolutions; arguments and result as in ``mobilemamba.ops.wavelet``."""
    bands = F.conv2d(dwt2d(x_BCHW, dwt_filters), weight, padding=weight.shape[-1] // 2, groups=len(weight))
    return idwt2d(bands, idwt_filters, (x_BCHW.shape[2], x_BCHW.shape[3]))
