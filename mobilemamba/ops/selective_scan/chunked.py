"""The selective scan in plain PyTorch, fast without a compiler: a recurrence over chunks, gradients in closed form.

A loop over L steps is bound by the launch of its operators. With chunks of about sqrt(L) steps, all chunks advance
together, then their last states are chained, then each chunk adds what it inherited: about 2 sqrt(L) launches. Nothing
is divided and every factor is at most 1, so no step can overflow. Memory is O(L), for the states; no products of pairs
of steps are stored.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, M chunks, S steps per chunk.
Inside, time comes first (LBKDN), so that one step of all sequences is one contiguous block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.scan_order import by_position, by_step
from mobilemamba.ops.selective_scan.definition import ScanInputs

# On a CPU, from this many states per step on, arithmetic outweighs the launches, and chunks only add memory traffic.
_WIDE_STEP_CPU = 1 << 14


class _Discretised(NamedTuple):
    dt_raw_LBKD: Tensor  # before softplus
    dt_LBKD: Tensor
    u_LBKD: Tensor
    decay_LBKDN: Tensor  # exp(dt A)
    drive_LBKDN: Tensor  # dt u B
    B_LBK1N: Tensor
    C_LBK1N: Tensor


def linear_recurrence(decay_LX: Tensor, drive_LX: Tensor, reverse: bool = False, overwrite: bool = False) -> Tensor:
    """Computes ``h_t = decay_t h_{t-1} + drive_t`` from ``h = 0``; in reverse, ``h_t = decay_t h_{t+1} + drive_t``.

    Args:
        decay_LX: Factors, shape (L, ...), contiguous.
        drive_LX: Inputs, of the same shape and dtype.
        reverse: Whether to run from the last step to the first.
        overwrite: Whether to write over ``drive_LX``, which saves memory but cannot be differentiated or exported.

    Returns:
        All states, shape (L, ...). Results with one chunk (for wide steps) and with several differ by rounding only.
    """
    length = decay_LX.shape[0]
    wide = overwrite and drive_LX.device.type == "cpu" and drive_LX.numel() >= _WIDE_STEP_CPU * length
    steps = length if wide else math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // steps) if length else 0
    if chunks <= 1:
        return _advance(decay_LX[None], drive_LX[None], reverse, overwrite)[0]
    padding = chunks * steps - length
    if padding:  # steps of zero drive and zero decay, after the end of the sequence
        decay_LX, drive_LX = (torch.cat([x, x.new_zeros(padding, *x.shape[1:])]) for x in (decay_LX, drive_LX))
    decay_MSX, drive_MSX = (x.unflatten(0, (chunks, steps)) for x in (decay_LX, drive_LX))
    h_MSX = _advance(decay_MSX, drive_MSX, reverse, overwrite)

    inherited_MSX = torch.cumprod(decay_MSX.flip(1), 1).flip(1) if reverse else torch.cumprod(decay_MSX, 1)
    last = 0 if reverse else steps - 1
    carry_MX = _advance(inherited_MSX[None, :, last], h_MSX[None, :, last], reverse, overwrite=False)[0]
    none_1X = torch.zeros_like(carry_MX[:1])
    before_MX = torch.cat([carry_MX[1:], none_1X] if reverse else [none_1X, carry_MX[:-1]])
    return torch.addcmul(h_MSX, inherited_MSX, before_MX[:, None]).flatten(0, 1)[:length]


def _advance(decay_MSX: Tensor, drive_MSX: Tensor, reverse: bool, overwrite: bool) -> Tensor:
    """Runs the recurrence along S in all M chunks at once, each from a zero state."""
    decay, h = decay_MSX.unbind(1), list(drive_MSX.unbind(1))
    step = 1 if not reverse else -1
    order = range(len(h))[::step]
    for t in order[1:]:
        if overwrite:
            h[t].addcmul_(decay[t], h[t - step])
        else:
            h[t] = torch.addcmul(h[t], decay[t], h[t - step])
    return drive_MSX if overwrite or not h else torch.stack(h, 1)


def _discretise(x: ScanInputs, size: Sequence[int]) -> _Discretised:
    dtype = torch.promote_types(x.u.dtype, torch.float32)
    u_LBKD, dt_LBKD, B_LBKN, C_LBKN = (s.to(dtype).contiguous() for s in x.by_step(size))
    dt_raw_LBKD = dt_LBKD + x.dt_bias.to(dtype)
    dt_LBKD = F.softplus(dt_raw_LBKD)
    decay = torch.exp(dt_LBKD[..., None] * x.A.to(dtype))
    drive = (dt_LBKD * u_LBKD)[..., None] * B_LBKN.unsqueeze(3)
    return _Discretised(dt_raw_LBKD, dt_LBKD, u_LBKD, decay, drive, B_LBKN.unsqueeze(3), C_LBKN.unsqueeze(3))


def forward(inputs: ScanInputs, size: Sequence[int], overwrite: bool = True) -> Tensor:
    """Scans by position; without ``overwrite``, by operators that autograd and exports can follow."""
    x = _discretise(inputs, size)
    h_LBKDN = linear_recurrence(x.decay_LBKDN, x.drive_LBKDN, overwrite=overwrite)
    y_LBKD = (h_LBKDN * x.C_LBK1N).sum(-1) + inputs.D.to(h_LBKDN.dtype) * x.u_LBKD
    return inputs.merge(by_position(y_LBKD, size))


def backward(grad_y: Tensor, inputs: ScanInputs, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Returns the gradients of all seven inputs; recomputes the states, so that training takes less memory."""
    x = _discretise(inputs, size)
    dtype = x.u_LBKD.dtype
    h_LBKDN = linear_recurrence(x.decay_LBKDN, x.drive_LBKDN, overwrite=True)
    gy_LBKD = by_step(grad_y.to(dtype), len(inputs.A), size).contiguous()

    grad_D = (gy_LBKD * x.u_LBKD).sum((0, 1))
    grad_C = (gy_LBKD[..., None] * h_LBKDN).sum(3)
    # A state is read by this step's output and by the next state: the same recurrence, backwards.
    next_decay = torch.cat([x.decay_LBKDN[1:], torch.zeros_like(x.decay_LBKDN[:1])])
    gh_LBKDN = linear_recurrence(next_decay, gy_LBKD[..., None] * x.C_LBK1N, reverse=True, overwrite=True)

    # d exp(dt A) = exp(dt A) (A d dt + dt dA), times the previous state.
    gdecay_LBKDN = torch.zeros_like(gh_LBKDN)
    torch.mul(gh_LBKDN[1:], h_LBKDN[:-1], out=gdecay_LBKDN[1:])
    gdecay_LBKDN.mul_(x.decay_LBKDN)
    grad_A = (gdecay_LBKDN * x.dt_LBKD[..., None]).sum((0, 1))
    gdrive_LBKD = (gh_LBKDN * x.B_LBK1N).sum(-1)
    grad_B = (gh_LBKDN * (x.dt_LBKD * x.u_LBKD)[..., None]).sum(3)
    gdt_LBKD = (gdecay_LBKDN * inputs.A.to(dtype)).sum(-1) + gdrive_LBKD * x.u_LBKD
    gdt_LBKD *= torch.sigmoid(x.dt_raw_LBKD)  # the derivative of softplus
    gu_LBKD = gdrive_LBKD * x.dt_LBKD + inputs.D.to(dtype) * gy_LBKD

    gu, gdt, gB, gC = (by_position(g, size) for g in (gu_LBKD, gdt_LBKD, grad_B, grad_C))
    return inputs.merge(gu), gdt, grad_A, gB, gC, grad_D, gdt_LBKD.sum((0, 1))
