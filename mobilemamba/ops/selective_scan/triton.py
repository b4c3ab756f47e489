"""The scan as a Triton kernel for NVIDIA's GPUs: one launch for all directions, nothing flipped, copied or added after.

A program has one picture and a block of channels. It keeps their states in registers, in fp32, and visits the positions
of each direction in turn; a direction is an order of visit, and channels lie side by side. There are no atomics: what
programs add to in common, they write apart, and PyTorch adds it up, so that the same inputs give the same bits.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length. In a kernel ``u_d`` is of a
block of channels, ``h_dn`` of their states too, and ``u_stride_l`` the distance in memory from position to position.
"""

# The kernels' arguments have no annotations, as Triton would read them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.selective_scan.definition import ScanInputs

tl: Any = None  # triton.language, once the kernels are asked for
constexpr = Any  # Triton goes by the annotation's name

#: By the state size, rounded up to a power of 2: the channels of a program, one warp. A step waits for memory, so that
#: many small programs are better than few large ones.
_BLOCK_D = {1: 32, 2: 32, 4: 32, 8: 16, 16: 8}


def _position(step, k, length, width, K: constexpr, MAP: constexpr):
    """Where direction k is at a step, as ``scan_order`` has it."""
    if MAP and K > 1:
        step = tl.where(k >= K // 2, length - 1 - step, step)
        if K == 4:
            height = length // width
            step = tl.where(k % 2 == 1, step % height * width + step // height, step)
    return tl.cast(step, tl.int64)


def _softplus(x):
    """``log(1 + exp(x))``, exact to rounding for every x: log(w) z / (w - 1) is log(1 + z) for the w that 1 + z is."""
    z = tl.exp(-tl.abs(x))
    w = 1 + z
    return tl.maximum(x, 0.0) + tl.where(w == 1, z, tl.log(w) * (z / (w - 1)))


def _ranks(weight, stride_r, has_d, R: constexpr):
    """The map from low-rank step sizes to the channels, by rank: a thread has all of its channel, in any layout."""
    weight_rd = tl.tuple(())
    for r in tl.static_range(R):
        weight_rd += (tl.load(weight + r * stride_r, has_d, 0.0).to(tl.float32),)
    return weight_rd


def _raw_dt(dt, stride_r, weight_rd, bias_d, has_d, R: constexpr):
    """Before softplus, at a position, where low-rank ones have R numbers, ``stride_r`` from one to the next."""
    if R == 0:
        return tl.load(dt, has_d, 0.0).to(tl.float32) + bias_d
    x_d = bias_d
    for r in tl.static_range(R):
        x_d += tl.load(dt + r * stride_r).to(tl.float32) * weight_rd[r]
    return x_d


def _forward(
    u, dt, A, B, C, skip, bias,
    u_stride_b, u_stride_k, u_stride_l, u_stride_d,
    dt_stride_b, dt_stride_k, dt_stride_l, dt_stride_d,
    B_stride_b, B_stride_k, B_stride_l, B_stride_n,
    C_stride_b, C_stride_k, C_stride_l, C_stride_n,
    dt_weight, dt_weight_stride_k, dt_weight_stride_r, dt_weight_stride_d,
    channels, length, width,
    y_sum, y,
    K: constexpr, N: constexpr, R: constexpr, MAP: constexpr, BLOCK_D: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """``delta = softplus(dt + bias)``, ``h = exp(delta A) h + delta u B``, ``y = C h + skip u``, summed over k.

    With a rank R, dt is low-rank, (B, K, L, R), and ``dt_weight_KRD`` maps it to the channels.
    """
    picture = tl.program_id(0).to(tl.int64)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)  # tensors may have 2^31 elements and more
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    has_d, has_n = d < channels, n < N
    has_dn = has_d[:, None] & has_n[None, :]
    u += picture * u_stride_b + d * u_stride_d
    dt += picture * dt_stride_b + (0 if R else d * dt_stride_d)
    dt_weight += d * dt_weight_stride_d
    B += picture * B_stride_b + n * B_stride_n
    C += picture * C_stride_b + n * C_stride_n
    for direction in range(K):
        k = tl.cast(direction, tl.int64)
        kd = k * channels + d
        A_dn = tl.load(A + kd[:, None] * N + n[None, :], has_dn, 0.0)
        skip_d = tl.load(skip + kd, has_d, 0.0)
        bias_d = tl.load(bias + kd, has_d, 0.0)
        weight_rd = _ranks(dt_weight + k * dt_weight_stride_k, dt_weight_stride_r, has_d, R)
        adds, goes_on = has_d & MAP & (k > 0), has_d & MAP & (k < K - 1)
        ends = has_d & ((not MAP) | (k == K - 1))
        out = (picture if MAP else picture * K + k) * length
        h_dn = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
        step = 0
        while step < length:
            at = _position(step, k, length, width, K, MAP)
            u_d = tl.load(u + k * u_stride_k + at * u_stride_l, has_d, 0.0).to(tl.float32)
            delta_d = _softplus(
                _raw_dt(dt + k * dt_stride_k + at * dt_stride_l, dt_stride_d, weight_rd, bias_d, has_d, R)
            )
            B_n = tl.load(B + k * B_stride_k + at * B_stride_l, has_n, 0.0).to(tl.float32)
            C_n = tl.load(C + k * C_stride_k + at * C_stride_l, has_n, 0.0).to(tl.float32)
            h_dn = tl.exp(delta_d[:, None] * A_dn) * h_dn + (delta_d * u_d)[:, None] * B_n[None, :]
            y_d = tl.sum(h_dn * C_n[None, :], 1) + skip_d * u_d
            here = (out + at) * channels + d
            y_d += tl.load(y_sum + here, adds, 0.0)
            tl.store(y_sum + here, y_d, goes_on)
            tl.store(y + here, y_d, ends)
            step += 1
        tl.debug_barrier()  # the next direction adds to what this one wrote


def _backward(
    u, dt, A, B, C, skip, bias,
    u_stride_b, u_stride_k, u_stride_l, u_stride_d,
    dt_stride_b, dt_stride_k, dt_stride_l, dt_stride_d,
    B_stride_b, B_stride_k, B_stride_l, B_stride_n,
    C_stride_b, C_stride_k, C_stride_l, C_stride_n,
    dt_weight, dt_weight_stride_k, dt_weight_stride_r, dt_weight_stride_d,
    channels, length, width,
    gy, gy_stride_b, gy_stride_k, gy_stride_l, gy_stride_d,
    gdt, gdt_stride_b, gdt_stride_k, gdt_stride_l, gdt_stride_d,
    states, gu_sum, gu, gA, gB, gC, gskip, gbias,
    K: constexpr, N: constexpr, R: constexpr, MAP: constexpr, BLOCK_D: constexpr, BLOCK_N: constexpr,
):  # fmt: skip
    """Gradients of all inputs: forwards for the states once more, then backwards.

    With ``a_t = exp(delta_t A)`` and ``gh_t = C_t gy_t + a_{t+1} gh_{t+1}``, the gradient of a state:
    ``gC = gy h``, ``gB = delta u gh``, ``gu = delta B gh + skip gy``, ``ga_t = gh_t h_{t-1}``, ``gA = delta a ga``,
    ``gdelta = A a ga + u B gh``, ``gdt = sigmoid(dt + bias) gdelta``.
    """
    picture, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = (block * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)  # tensors may have 2^31 elements and more
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    has_d, has_n = d < channels, n < N
    has_dn = has_d[:, None] & has_n[None, :]
    u += picture * u_stride_b + d * u_stride_d
    dt += picture * dt_stride_b + (0 if R else d * dt_stride_d)
    dt_weight += d * dt_weight_stride_d
    B += picture * B_stride_b + n * B_stride_n
    C += picture * C_stride_b + n * C_stride_n
    gy += picture * gy_stride_b + d * gy_stride_d
    gdt += picture * gdt_stride_b + d * gdt_stride_d
    states += picture * length * channels * N + d[:, None] * N + n[None, :]
    partial = block * tl.num_programs(0) + picture
    for direction in range(K):
        k = tl.cast(direction, tl.int64)
        kd = k * channels + d
        A_dn = tl.load(A + kd[:, None] * N + n[None, :], has_dn, 0.0)
        skip_d = tl.load(skip + kd, has_d, 0.0)
        bias_d = tl.load(bias + kd, has_d, 0.0)
        weight_rd = _ranks(dt_weight + k * dt_weight_stride_k, dt_weight_stride_r, has_d, R)
        adds, goes_on = has_d & MAP & (k > 0), has_d & MAP & (k < K - 1)
        ends = has_d & ((not MAP) | (k == K - 1))
        out = (picture if MAP else picture * K + k) * length

        h_dn = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
        step = 0
        while step < length:
            at = _position(step, k, length, width, K, MAP)
            u_d = tl.load(u + k * u_stride_k + at * u_stride_l, has_d, 0.0).to(tl.float32)
            delta_d = _softplus(
                _raw_dt(dt + k * dt_stride_k + at * dt_stride_l, dt_stride_d, weight_rd, bias_d, has_d, R)
            )
            B_n = tl.load(B + k * B_stride_k + at * B_stride_l, has_n, 0.0).to(tl.float32)
            h_dn = tl.exp(delta_d[:, None] * A_dn) * h_dn + (delta_d * u_d)[:, None] * B_n[None, :]
            tl.store(states + at * channels * N, h_dn, has_dn)
            step += 1
        tl.debug_barrier()

        a_gh_dn = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)  # of the step after
        gA_dn = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
        gskip_d, gbias_d = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
        step = length - 1
        while step >= 0:
            at = _position(step, k, length, width, K, MAP)
            before = _position(step - 1, k, length, width, K, MAP)
            u_d = tl.load(u + k * u_stride_k + at * u_stride_l, has_d, 0.0).to(tl.float32)
            x_d = _raw_dt(dt + k * dt_stride_k + at * dt_stride_l, dt_stride_d, weight_rd, bias_d, has_d, R)
            gy_d = tl.load(gy + k * gy_stride_k + at * gy_stride_l, has_d, 0.0).to(tl.float32)
            B_n = tl.load(B + k * B_stride_k + at * B_stride_l, has_n, 0.0).to(tl.float32)
            C_n = tl.load(C + k * C_stride_k + at * C_stride_l, has_n, 0.0).to(tl.float32)
            before_dn = tl.load(states + before * channels * N, has_dn & (step > 0), 0.0)
            delta_d = _softplus(x_d)
            a_dn = tl.exp(delta_d[:, None] * A_dn)
            gh_dn = gy_d[:, None] * C_n[None, :] + a_gh_dn
            a_gh_dn = a_dn * gh_dn
            a_ga_dn = a_gh_dn * before_dn
            gh_B_d = tl.sum(gh_dn * B_n[None, :], 1)
            gdelta_d = tl.sum(a_ga_dn * A_dn, 1) + gh_B_d * u_d
            z_d = tl.exp(-tl.abs(x_d))
            gdt_d = gdelta_d * (tl.where(x_d >= 0, 1.0, z_d) / (1 + z_d))
            gu_d = gh_B_d * delta_d + skip_d * gy_d
            gA_dn += a_ga_dn * delta_d[:, None]
            gskip_d += gy_d * u_d
            gbias_d += gdt_d

            here = (out + at) * channels + d
            gu_d += tl.load(gu_sum + here, adds, 0.0)
            tl.store(gu_sum + here, gu_d, goes_on)
            tl.store(gu + here, gu_d, ends)
            row = (partial * K + k) * length + at
            tl.store(gdt + k * gdt_stride_k + at * gdt_stride_l, gdt_d, has_d)
            tl.store(gB + row * N + n, tl.sum(gh_dn * (delta_d * u_d)[:, None], 0), has_n)
            tl.store(gC + row * N + n, tl.sum(h_dn * gy_d[:, None], 0), has_n)
            h_dn = before_dn
            step -= 1
        kd += picture * K * channels
        tl.store(gA + kd[:, None] * N + n[None, :], gA_dn, has_dn)
        tl.store(gskip + kd, gskip_d, has_d)
        tl.store(gbias + kd, gbias_d, has_d)
        tl.debug_barrier()  # the next direction writes its states over these, and adds to what this one wrote


@cache
def _kernels() -> list[Any]:
    """Forward and backward."""
    return jit.compiled(globals(), _forward, _backward, _position, _softplus, _ranks, _raw_dt)[:2]


def _block(N: int) -> int:
    return _BLOCK_D.get(jit.padded(N), 8)


def _blocks(D: int, N: int) -> int:
    return -(-D // _block(N))


def _launch(kernel: Any, x: ScanInputs, dt_weight: Tensor | None, size: Sequence[int], *others: object) -> None:
    """Calls a kernel; ``others`` are its arguments besides those that both have."""
    K, D, N = x.A.shape
    batch, length = x.u.shape[0], x.u.shape[-2]
    A, skip, bias = (w.float().contiguous() for w in (x.A, x.D, x.dt_bias))
    tensors = (x.u, x.dt, A, x.B, x.C, skip, bias)
    strides = [stride for v in (x.u, x.dt, x.B, x.C) for stride in _strides(v)]
    weight = x.dt.new_empty(0, 0, 0) if dt_weight is None else dt_weight  # (K, R, D)
    numbers = (*weight.stride(), D, length, size[1] if size else 0)
    constants = {"K": K, "N": N, "R": weight.shape[1], "MAP": bool(size), "BLOCK_D": _block(N)}
    constants["BLOCK_N"] = jit.padded(N)
    with torch.cuda.device_of(x.u):
        kernel[batch, _blocks(D, N)](*tensors, *strides, weight, *numbers, *others, **constants, num_warps=1)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of picture, direction, position and channel; 0 for the direction of a tensor (B, L, D) that all share."""
    stride = x.stride()
    return (stride[0], 0, *stride[1:]) if x.ndim == 3 else stride


def _sum_of(y: Tensor, x: ScanInputs, size: Sequence[int]) -> Tensor:
    """Where directions add up before the last one writes to y, in fp32."""
    return y.new_empty(y.shape, dtype=torch.float32) if size and len(x.A) > 1 and y.dtype != torch.float32 else y


def forward(x: ScanInputs, size: Sequence[int], dt_weight_KRD: Tensor | None = None) -> Tensor:
    """The scan by position; with ``dt_weight_KRD``, which maps it to the channels, x's dt is (B, K, L, R)."""
    y = x.u.new_empty(x.u.shape)
    _launch(_kernels()[0], x, dt_weight_KRD, size, _sum_of(y, x, size), y)
    return y


def backward(
    grad_y: Tensor, x: ScanInputs, size: Sequence[int], dt_weight_KRD: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Gradients of all seven inputs; the states are computed again, one direction's at a time.

    A low-rank dt's is that of all channels as well, (B, K, L, D), for a matrix product: to add up the channels in every
    step would take the kernel longer than the memory takes.
    """
    batch, length, (K, D, N) = x.u.shape[0], x.u.shape[-2], x.A.shape
    gu = x.u.new_empty(x.u.shape)
    # Pictures side by side for each direction, as products of matrices take them.
    gdt = torch.empty_like(x.dt) if dt_weight_KRD is None else x.dt.new_empty(K, batch, length, D).transpose(0, 1)
    states = x.A.new_empty((batch, length, D, N), dtype=torch.float32)
    gB, gC = (states.new_empty(_blocks(D, N), *x.B.shape) for _ in range(2))
    gA, gskip, gbias = (states.new_empty(batch, *w.shape) for w in (x.A, x.D, x.dt_bias))
    gradients = (gdt, *gdt.stride(), states, _sum_of(gu, x, size), gu, gA, gB, gC, gskip, gbias)
    _launch(_kernels()[1], x, dt_weight_KRD, size, grad_y, *_strides(grad_y), *gradients)
    return gu, gdt, *(partial.sum(0) for partial in (gA, gB, gC, gskip, gbias))


def unavailable(device: torch.device, dtype: torch.dtype, d_state: int = 1) -> str | None:
    """Why the kernels cannot run there, or None if they can."""
    if d_state > max(_BLOCK_D):
        return f"d_state={d_state} exceeds the kernels' {max(_BLOCK_D)}"
    return jit.why_not_on(device, dtype)


BACKEND = jit.backend(forward, backward, unavailable)
