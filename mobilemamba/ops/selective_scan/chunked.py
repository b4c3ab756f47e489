"""The selective scan in plain PyTorch, fast without a compiler: a recurrence over chunks, gradients in closed form.

A loop over L steps is bound by the launch of its operators. Cut into chunks of about sqrt(L) steps, all chunks advance
together, then their last states are chained, then each chunk adds what it inherited: about 2 sqrt(L) launches. Nothing
is divided and every factor is at most 1, so no step can overflow. Memory is O(L): the states, never products of pairs.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, M chunks, S steps a chunk.
Inside, time comes first (LBKDN), so that one step of all sequences is one contiguous block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# On a CPU, from this many states a step on, the arithmetic outweighs the launches: chunks only add memory traffic.
_WIDE_STEP_CPU = 1 << 14


class _Discretised(NamedTuple):
    dt_raw_LBKD: Tensor  # before softplus
    dt_LBKD: Tensor
    u_LBKD: Tensor
    decay_LBKDN: Tensor  # exp(dt A)
    drive_LBKDN: Tensor  # dt u B
    B_LBK1N: Tensor
    C_LBK1N: Tensor


def linear_recurrence(decay_LX: Tensor, drive_LX: Tensor, reverse: bool = False) -> Tensor:
    """``h_t = decay_t h_{t-1} + drive_t`` from ``h = 0``; in reverse, ``h_t = decay_t h_{t+1} + drive_t``.

    Args:
        decay_LX: Factors, shape (L, ...), contiguous.
        drive_LX: Inputs, of the same shape and dtype.
        reverse: Run from the last step to the first.

    Returns:
        All states, shape (L, ...). With one chunk (long rows) and with several the results differ by rounding only.
    """
    length = decay_LX.shape[0]
    wide = drive_LX.device.type == "cpu" and drive_LX.numel() >= _WIDE_STEP_CPU * length
    steps = length if wide else math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // steps) if length else 0
    if chunks <= 1:
        return _advance(decay_LX[None], drive_LX[None], reverse)[0]
    padding = chunks * steps - length
    if padding:  # steps of zero drive and zero decay, after the end of time in either direction's last chunk
        decay_LX, drive_LX = (torch.cat([x, x.new_zeros(padding, *x.shape[1:])]) for x in (decay_LX, drive_LX))
    decay_MSX, drive_MSX = (x.unflatten(0, (chunks, steps)) for x in (decay_LX, drive_LX))
    h_MSX = _advance(decay_MSX, drive_MSX, reverse)

    inherited_MSX = torch.cumprod(decay_MSX.flip(1), 1).flip(1) if reverse else torch.cumprod(decay_MSX, 1)
    last = 0 if reverse else steps - 1
    carry_MX = _advance(inherited_MSX[None, :, last], h_MSX[None, :, last], reverse)[0]
    if reverse:
        h_MSX[:-1].addcmul_(inherited_MSX[:-1], carry_MX[1:, None])
    else:
        h_MSX[1:].addcmul_(inherited_MSX[1:], carry_MX[:-1, None])
    return h_MSX.flatten(0, 1)[:length]


def _advance(decay_MSX: Tensor, drive_MSX: Tensor, reverse: bool) -> Tensor:
    """The recurrence along S, all M chunks at once, each from a zero state."""
    h_MSX = torch.empty_like(drive_MSX)
    decay, drive, h = decay_MSX.unbind(1), drive_MSX.unbind(1), h_MSX.unbind(1)
    order = range(len(h))[::-1] if reverse else range(len(h))
    previous = None
    for t in order:
        if previous is None:
            h[t].copy_(drive[t])
        else:
            torch.addcmul(drive[t], decay[t], previous, out=h[t])
        previous = h[t]
    return h_MSX


def _discretise(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, dt_bias: Tensor) -> _Discretised:
    dtype = torch.promote_types(u.dtype, torch.float32)
    u_LBKD, dt_LBKD = (x.to(dtype).permute(3, 0, 1, 2).contiguous() for x in (u, dt))
    B_LBK1N, C_LBK1N = (x.to(dtype).permute(3, 0, 1, 2).contiguous().unsqueeze(3) for x in (B, C))
    dt_raw_LBKD = dt_LBKD + dt_bias.to(dtype)
    dt_LBKD = F.softplus(dt_raw_LBKD)
    decay = torch.exp(dt_LBKD[..., None] * A.to(dtype))
    drive = (dt_LBKD * u_LBKD)[..., None] * B_LBK1N
    return _Discretised(dt_raw_LBKD, dt_LBKD, u_LBKD, decay, drive, B_LBK1N, C_LBK1N)


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    """The scan; arguments and result as in ``selective_scan``."""
    x = _discretise(u, dt, A, B, C, dt_bias)
    h_LBKDN = linear_recurrence(x.decay_LBKDN, x.drive_LBKDN)
    y_LBKD = (h_LBKDN * x.C_LBK1N).sum(-1) + D.to(h_LBKDN.dtype) * x.u_LBKD
    return y_LBKD.permute(1, 2, 3, 0).to(u.dtype).contiguous()


def backward(
    grad_y: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of all seven inputs; the states are computed again, not kept, so that training takes less memory."""
    x = _discretise(u, dt, A, B, C, dt_bias)
    dtype = x.u_LBKD.dtype
    h_LBKDN = linear_recurrence(x.decay_LBKDN, x.drive_LBKDN)
    gy_LBKD = grad_y.to(dtype).permute(3, 0, 1, 2).contiguous()

    grad_D = (gy_LBKD * x.u_LBKD).sum((0, 1))
    grad_C = (gy_LBKD[..., None] * h_LBKDN).sum(3)
    # A state is read by this step's output and by the next state: the same recurrence, backwards.
    next_decay = torch.cat([x.decay_LBKDN[1:], torch.zeros_like(x.decay_LBKDN[:1])])
    gh_LBKDN = linear_recurrence(next_decay, gy_LBKD[..., None] * x.C_LBK1N, reverse=True)

    # d exp(dt A) = exp(dt A) (A d dt + dt dA), times the previous state.
    gdecay_LBKDN = torch.zeros_like(gh_LBKDN)
    torch.mul(gh_LBKDN[1:], h_LBKDN[:-1], out=gdecay_LBKDN[1:])
    gdecay_LBKDN.mul_(x.decay_LBKDN)
    grad_A = (gdecay_LBKDN * x.dt_LBKD[..., None]).sum((0, 1))
    gdrive_LBKD = (gh_LBKDN * x.B_LBK1N).sum(-1)
    grad_B = (gh_LBKDN * (x.dt_LBKD * x.u_LBKD)[..., None]).sum(3)
    gdt_LBKD = (gdecay_LBKDN * A.to(dtype)).sum(-1) + gdrive_LBKD * x.u_LBKD
    gdt_LBKD *= torch.sigmoid(x.dt_raw_LBKD)  # the derivative of softplus
    gu_LBKD = gdrive_LBKD * x.dt_LBKD + D.to(dtype) * gy_LBKD

    grads = (
        gu_LBKD.permute(1, 2, 3, 0),
        gdt_LBKD.permute(1, 2, 3, 0),
        grad_A,
        grad_B.permute(1, 2, 3, 0),
        grad_C.permute(1, 2, 3, 0),
        grad_D,
        gdt_LBKD.sum((0, 1)),
    )
    inputs = (u, dt, A, B, C, D, dt_bias)
    return tuple(g.to(i.dtype).contiguous() for g, i in zip(grads, inputs, strict=True))
