"""The scan as a Triton kernel for NVIDIA's GPUs: one launch for all directions, without flips, copies or sums after it.

A direction is an order of visit, and channels are adjacent. There are no atomics: programs write their parts of a sum
separately and PyTorch adds them up, so that the same inputs give the same bits.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, R rank of the step sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.selective_scan.triton_kernels import kernels as _kernels

#: Positions that a program holds at a time, forwards and backwards: as many as fit into its registers.
_BLOCK_T = (16, 8)
#: The largest state size.
_MAX_N = 16


def _block(N: int) -> int:
    """Returns the channels of a program; a thread holds all positions of one channel and state."""
    return 32 if N == 1 else 16


def _blocks(D: int, N: int) -> int:
    return -(-D // _block(N))


def _launch(backwards: bool, x: ScanInputs, dt_weight: Tensor | None, size: Sequence[int], *others: object) -> None:
    """Launches the forward or backward kernel; ``others`` are the arguments that only this kernel takes."""
    kernel, block_t = _kernels()[backwards], _BLOCK_T[backwards]
    K, D, N = x.A.shape
    batch, length = x.u.shape[0], x.u.shape[-2]
    A, skip, bias = (w.float().contiguous() for w in (x.A, x.D, x.dt_bias))
    tensors = (x.u, x.dt, A, x.B, x.C, skip, bias)
    strides = [stride for v in (x.u, x.dt, x.B, x.C) for stride in _strides(v)]
    weight = x.dt.new_empty(0, 0, 0) if dt_weight is None else dt_weight  # (K, R, D)
    numbers = (*weight.stride(), D, length, size[1] if size else 0)
    blocks = {"T": block_t, "D": _block(N), "N": jit.padded(N), "R": max(jit.padded(weight.shape[1]), 16)}
    constants = {"K": K, "N": N, "R": weight.shape[1], "MAP": bool(size), "DOT": jit.dot_type(x.dt.dtype)}
    constants["WIDE"] = any(_is_wide(v) for v in (*tensors, *others) if isinstance(v, Tensor))
    constants |= {f"BLOCK_{letter}": block for letter, block in blocks.items()}
    warps = min(blocks["D"] * blocks["N"] // 32, 8)
    grid = batch, _blocks(D, N)
    jit.launch(kernel, grid, *tensors, *strides, weight, *numbers, *others, **constants, num_warps=warps)


def _is_wide(x: Tensor) -> bool:
    """Returns whether offsets within a picture need more than 32 bits."""
    return sum((n - 1) * stride for n, stride in zip(x.shape[-2:], x.stride()[-2:], strict=True)) >= 2**31


def _strides(x: Tensor) -> tuple[int, ...]:
    """Returns the strides of picture, direction, position and channel; the direction's is 0 if all share (B, L, D)."""
    stride = x.stride()
    return (stride[0], 0, *stride[1:]) if x.ndim == 3 else stride


def _sum_of(y: Tensor, x: ScanInputs, size: Sequence[int]) -> Tensor:
    """Returns the fp32 tensor where directions are summed before the last one writes to y; y itself if it is fp32."""
    return y.new_empty(y.shape, dtype=torch.float32) if size and len(x.A) > 1 and y.dtype != torch.float32 else y


def forward(x: ScanInputs, size: Sequence[int], dt_weight_KRD: Tensor | None = None) -> Tensor:
    """Scans by position; with ``dt_weight_KRD``, x's dt is (B, K, L, R), and the weight maps it to the channels."""
    y = x.u.new_empty(x.u.shape)
    _launch(False, x, dt_weight_KRD, size, _sum_of(y, x, size), y)
    return y


def backward(
    grad_y: Tensor, x: ScanInputs, size: Sequence[int], dt_weight_KRD: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns the gradients of all seven inputs; keeps one state per block of positions and recomputes the others.

    The gradient of a low-rank dt is that of all channels as well, (B, K, L, D); a matrix product then reduces it, as
    summing over channels at every step would take the kernel longer than the memory traffic does.
    """
    batch, length, (K, D, N) = x.u.shape[0], x.u.shape[-2], x.A.shape
    gu = x.u.new_empty(x.u.shape)
    # For each direction, pictures follow each other in memory, as the matrix products need them.
    gdt = torch.empty_like(x.dt) if dt_weight_KRD is None else x.dt.new_empty(K, batch, length, D).transpose(0, 1)
    states = x.A.new_empty((batch, -(-length // _BLOCK_T[1]), D, N), dtype=torch.float32)
    gB, gC = (states.new_empty(_blocks(D, N), *x.B.shape) for _ in range(2))
    gA, gskip, gbias = (states.new_empty(batch, *w.shape) for w in (x.A, x.D, x.dt_bias))
    gradients = (gdt, *gdt.stride(), states, _sum_of(gu, x, size), gu, gA, gB, gC, gskip, gbias)
    _launch(True, x, dt_weight_KRD, size, grad_y, *_strides(grad_y), *gradients)
    return gu, gdt, *(partial.sum(0) for partial in (gA, gB, gC, gskip, gbias))


def unavailable(device: torch.device, dtype: torch.dtype, d_state: int = 1) -> str | None:
    """Returns why the kernels cannot run on the device in the dtype, or None if they can."""
    if d_state > _MAX_N:
        return f"d_state={d_state} exceeds the kernels' {_MAX_N}"
    return jit.why_not_on(device, dtype)


BACKEND = jit.backend(forward, backward, unavailable)
