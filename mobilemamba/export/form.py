"""The network in the form that other runtimes take: norms folded, and every operator of ours in plain ones.

Shape letters: B batch, C channels, H and W sides, K scan directions, D inner width, N state size, L sequence length,
M chunks, S steps a chunk, X = K * D * N: what advances together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import Tensor, nn

from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.ops.scan_order import in_place, in_steps


def exportable(network: nn.Module) -> nn.Module:
    """A copy for inference with the same outputs up to rounding, whose operators :func:`decompositions` knows."""
    copy = reparameterize_model(fuse_norms(network))
    _replace_wavelets(copy)
    return copy.eval().requires_grad_(requires_grad=False)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operator -> the plain function that computes it, as ``ExportedProgram.run_decompositions`` takes them."""
    return {torch.ops.mobilemamba.selective_scan.default: scan}


def softplus(x: Tensor) -> Tensor:
    """Half the operators of ``F.softplus`` as exports spell it, and as exact."""
    return F.relu(x) + torch.log(1 + torch.exp(-x.abs()))


def scan(
    u: Tensor,
    dt: Tensor,
    A_KDN: Tensor,
    B: Tensor,
    C: Tensor,
    D_KD: Tensor,
    dt_bias_KD: Tensor,
    height: int,
    width: int,
    _: str,
) -> Tensor:
    """The selective scan in two levels: all chunks advance together, then each adds what it inherits.

    Nothing is divided and every factor is at most 1. Arguments as of the operator ``mobilemamba::selective_scan``.
    """
    directions, size = len(A_KDN), () if u.ndim == 4 else (height, width)
    u_LBKD, dt_LBKD, B_LBKN, C_LBKN = (in_steps(x.float(), directions, size) for x in (u, dt, B, C))
    dt_LBKD = softplus(dt_LBKD + dt_bias_KD.float())
    decay = torch.exp(dt_LBKD[..., None] * A_KDN.float())
    drive = (dt_LBKD * u_LBKD)[..., None] * B_LBKN[..., None, :]
    h_LBKDN = recurrence(decay.flatten(2), drive.flatten(2)).unflatten(2, tuple(A_KDN.shape))
    y_LBKD = (h_LBKDN * C_LBKN[..., None, :]).sum(-1) + D_KD.float() * u_LBKD
    y_BKLD = in_place(y_LBKD, size)
    return (y_BKLD if u.ndim == 4 else y_BKLD.sum(1)).to(u.dtype).contiguous()


def recurrence(decay_LBX: Tensor, drive_LBX: Tensor) -> Tensor:
    """``h_t = decay_t h_{t-1} + drive_t`` from ``h = 0``, of the same shape."""
    length = decay_LBX.shape[0]
    steps = math.isqrt(length - 1) + 1
    chunks = -(-length // steps)
    if padding := chunks * steps - length:
        decay_LBX, drive_LBX = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (decay_LBX, drive_LBX))
    decay, drive = (x.unflatten(0, (chunks, steps)) for x in (decay_LBX, drive_LBX))
    h, inherited = [drive.narrow(1, 0, 1)], [decay.narrow(1, 0, 1)]
    for step in range(1, steps):
        h.append(decay.narrow(1, step, 1) * h[-1] + drive.narrow(1, step, 1))
        inherited.append(decay.narrow(1, step, 1) * inherited[-1])
    carry = [torch.zeros_like(h[0].narrow(0, 0, 1))]
    for chunk in range(chunks - 1):
        carry.append(inherited[-1].narrow(0, chunk, 1) * carry[-1] + h[-1].narrow(0, chunk, 1))
    states = torch.cat(h, 1) + torch.cat(inherited, 1) * torch.cat(carry, 0)
    return states.flatten(0, 1).narrow(0, 0, length)


class HaarConv(nn.Module):
    """What a ``WaveletConv`` with Haar's filters computes, its transforms as sums of slices.

    Args:
        conv: The original.
    """

    weight: Tensor

    def __init__(self, conv: WaveletConv) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([conv.weight.detach()[band::4] for band in range(4)]) / 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        x = F.pad(x_BCHW, (0, width % 2, 0, height % 2))
        corners = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        bands = torch.cat(_butterfly(*corners), 1)
        bands = F.conv2d(bands, self.weight, padding=self.weight.shape[-1] // 2, groups=len(self.weight))
        upper_left, upper_right, lower_left, lower_right = _butterfly(*bands.chunk(4, 1))
        rows = [torch.stack(pair, -1) for pair in ((upper_left, upper_right), (lower_left, lower_right))]
        return torch.stack(rows, 3).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    """Twice the four sub-bands of a square's corners, or the corners of them: the transform is its own inverse."""
    top, bottom, rise, fall = a + b, c + d, a - b, c - d
    return [top + bottom, top - bottom, rise + fall, rise - fall]


def _replace_wavelets(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, WaveletConv) and child.is_haar:
            setattr(module, name, HaarConv(child))
        else:
            _replace_wavelets(child)
