"""The selective scan in plain operators, for one size of the map.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, M chunks, S steps per chunk,
X what advances together.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.scan_order import by_position, by_step
from mobilemamba.ops.selective_scan import expand_dt


def softplus(x: Tensor) -> Tensor:
    """Softplus in fewer operators than ``F.softplus`` exports to, and as exact; OpenVINO fuses its logarithm term."""
    return F.relu(x) + torch.log(torch.exp(-x.abs()) + 1)


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
    dt_weight: Tensor | None = None,
) -> Tensor:
    """Computes the selective scan in two levels: all chunks advance together, then each adds what it inherits.

    Nothing is divided and every factor is at most 1. Arguments as for the operator ``mobilemamba::selective_scan``.
    """
    if dt_weight is not None:  # low-rank step sizes, from a graph traced where Triton runs the scan
        dt = expand_dt(dt.float(), dt_weight.float())
    directions, size = len(A_KDN), () if u.ndim == 4 else (height, width)
    u_LBKD, dt_LBKD, B_LBKN, C_LBKN = (by_step(x.float(), directions, size) for x in (u, dt, B, C))
    dt_LBKD = softplus(dt_LBKD + dt_bias_KD.float())
    decay = torch.exp(dt_LBKD[..., None] * A_KDN.float())
    drive = (dt_LBKD * u_LBKD)[..., None] * B_LBKN[..., None, :]
    h_BLX = recurrence(decay.flatten(2).transpose(0, 1), drive.flatten(2).transpose(0, 1))
    h_LBKDN = h_BLX.transpose(0, 1).unflatten(2, tuple(A_KDN.shape))
    y_LBKD = (h_LBKDN * C_LBKN[..., None, :]).sum(-1) + D_KD.float() * u_LBKD
    y_BKLD = by_position(y_LBKD, size)
    return (y_BKLD if u.ndim == 4 else y_BKLD.sum(1)).to(u.dtype).contiguous()


def recurrence(decay_BLX: Tensor, drive_BLX: Tensor) -> Tensor:
    """Computes ``h_t = decay_t h_{t-1} + drive_t`` from ``h = 0``, of the same shape, for a known length."""
    length = decay_BLX.shape[1]
    steps = math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // steps)
    if padding := chunks * steps - length:
        decay_BLX, drive_BLX = (F.pad(x, (0, 0, 0, padding)) for x in (decay_BLX, drive_BLX))
    decay, drive = (x.unflatten(1, (chunks, steps)).split(1, 2) for x in (decay_BLX, drive_BLX))
    h, inherited = [drive[0]], [decay[0]]
    for step in range(1, steps):
        h.append(decay[step] * h[-1] + drive[step])
        inherited.append(decay[step] * inherited[-1])
    ends, factors = h[-1].split(1, 1), inherited[-1].split(1, 1)
    carry = [torch.zeros_like(ends[0]), ends[0]][:chunks]
    for chunk in range(1, chunks - 1):
        carry.append(factors[chunk] * carry[-1] + ends[chunk])
    before = torch.cat(carry, 1)
    states = torch.cat([own + factor * before for own, factor in zip(h, inherited, strict=True)], 2).flatten(1, 2)
    return states.narrow(1, 0, length) if padding else states
