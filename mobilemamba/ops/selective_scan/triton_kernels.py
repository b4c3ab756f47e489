"""The scan's kernels in Triton's language.

A program processes one picture and a block of channels, and visits the positions of each direction in turn, a block of
them at a time: it loads them at once, computes their step sizes by a matrix product, and each thread scans its channel
in registers, in fp32. All that the scan needs from the positions before (or after) a block is one state per channel.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, R rank of the step sizes. In
a kernel, ``u_td`` holds some positions of a block of channels, ``h_tdn`` their states too, and ``u_stride_l`` is the
distance in memory from one position to the next.
"""

# The kernels' arguments have no annotations, because Triton would interpret them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

from mobilemamba.ops import jit

tl: Any = None  # triton.language, set when the kernels are first needed
constexpr = Any  # Triton goes by the annotation's name


def _log2_softplus(x):
    """``log2(1 + 2^x)``, exact to rounding for every x; log2(1 + z) is z times its best polynomial on 0 to 1."""
    z = tl.exp2(-tl.abs(x))
    y = 0.00754918206 * z - 0.0425670616
    y = y * z + 0.112856193
    y = y * z - 0.197118969
    y = y * z + 0.275641412
    y = y * z - 0.358408472
    y = y * z + 0.480692957
    y = y * z - 0.721340208
    y = y * z + 1.442695
    return tl.maximum(x, 0.0) + y * z


def _after(a_left, b_left, a, b):
    """Combines two steps of ``h = a h + b`` into one."""
    return a_left * a, b_left * a + b


def _before(p_left, h_left, a_left, b_left, p, h, a, b):
    """Combines two elements likewise: ``h = p h_in + h`` is the state before a step, (a, b) the step itself."""
    factor = p * a_left
    return factor * p_left, factor * h_left + (p * b_left + h), a, b


def _backwards(p_right, g_right, a_right, p, g, a):
    """Combines two backward steps of ``g_t = g_t + a_{t+1} g_{t+1}`` into one."""
    factor = p * a_right
    return factor * p_right, factor * g_right + g, a


def _positions(first, length, width, k: constexpr, K: constexpr, MAP: constexpr, WIDE: constexpr, BLOCK_T: constexpr):
    """Returns direction k's positions at some steps, as in ``scan_order``, and which exist; others repeat the last."""
    step = first + tl.arange(0, BLOCK_T)
    has_t = step < length
    step = tl.minimum(step, length - 1)
    if MAP:
        if 2 * k >= K and K > 1:
            step = length - 1 - step
        if K == 4 and k % 2 == 1:
            height = length // width
            step = step % height * width + step // height
    if WIDE:
        step = step.to(tl.int64)
    return step, has_t


def _of_direction(x, picture, stride_b, k: constexpr, stride_k):
    """Returns a pointer to a picture's part for direction k, which may be 2^31 or more elements away."""
    return x + picture * stride_b + tl.cast(k, tl.int64) * stride_k


def _rows(x, at_t, d, has_d):
    """Loads (positions, channels) of x = (pointer, distance of positions, distance of channels)."""
    pointer, stride_l, stride_d = x
    x_td = tl.load(pointer + at_t[:, None] * stride_l + d[None, :] * stride_d, has_d[None, :], 0.0)
    return x_td.to(tl.float32)


def _columns(x, at_t, N: constexpr, BLOCK_N: constexpr):
    """Loads N numbers of each position. One column is loaded as two, else every thread would load it for itself."""
    n = tl.arange(0, 2 if N == 1 else BLOCK_N)
    x_tn = _rows(x, at_t, n, n < N)
    if N == 1:
        x_tn = tl.sum(x_tn, 1, keep_dims=True)
    return x_tn


def _dt_weight(weight, stride_r, stride_d, d, has_d, dtype: constexpr, R: constexpr, BLOCK_R: constexpr):
    """Loads the weight of low-rank step sizes, in units of log2, as its rounding to a dtype and the remainder."""
    r = tl.arange(0, BLOCK_R)
    weight_rd = tl.load(weight + r[:, None] * stride_r + d[None, :] * stride_d, (r < R)[:, None] & has_d[None, :], 0.0)
    weight_rd = weight_rd.to(tl.float32) * 1.4426950408889634
    rounded_rd = weight_rd.to(dtype)
    return rounded_rd, (weight_rd - rounded_rd.to(tl.float32)).to(dtype)


def _log2_dt(dt, weight, bias_d, at_t, d, has_d, R: constexpr, BLOCK_R: constexpr):
    """Returns step sizes before softplus in units of log2; for a rank R, by a matrix product with low-rank ones."""
    if R == 0:
        return _rows(dt, at_t, d, has_d) * 1.4426950408889634 + bias_d[None, :]
    pointer, stride_l, stride_r = dt
    rounded_rd, rest_rd = weight
    r = tl.arange(0, BLOCK_R)
    low_tr = tl.load(pointer + at_t[:, None] * stride_l + r[None, :] * stride_r, (r < R)[None, :], 0.0)
    low_tr = low_tr.to(rounded_rd.dtype)
    low_rt = tl.trans(low_tr)
    x_dt = tl.broadcast_to(bias_d[:, None], (d.shape[0], at_t.shape[0]))
    if rounded_rd.dtype == tl.float32:
        return tl.trans(tl.dot(tl.trans(rounded_rd), low_rt, x_dt, input_precision="tf32x3", out_dtype=tl.float32))
    x_dt = tl.dot(tl.trans(rest_rd), low_rt, x_dt, out_dtype=tl.float32)
    return tl.trans(tl.dot(tl.trans(rounded_rd), low_rt, x_dt, out_dtype=tl.float32))


def _recurrence(
    u, dt, B, A_dn, weight, bias_d, at_t, d, has_d, N: constexpr, R: constexpr, BLOCK_N: constexpr, BLOCK_R: constexpr
):
    """Returns ``a`` and ``b`` of ``h = a h + b``, and their parts; step sizes before and after softplus are in log2."""
    u_td = _rows(u, at_t, d, has_d)
    x_td = _log2_dt(dt, weight, bias_d, at_t, d, has_d, R, BLOCK_R)
    delta_td = _log2_softplus(x_td)
    B_tn = _columns(B, at_t, N, BLOCK_N)
    a_tdn = tl.exp2(delta_td[:, :, None] * A_dn[None, :, :])
    b_tdn = (delta_td * u_td)[:, :, None] * (B_tn * 0.6931471805599453)[:, None, :]
    return u_td, x_td, delta_td, B_tn, a_tdn, b_tdn


def _sum_products(x, axis: constexpr, has):
    """Sums products over an axis to the same bits in every thread that holds the sum, as any of them may write it.

    Without the condition, the compiler would let a thread's own product enter the first addition unrounded.
    """
    if x.shape[axis] == 1:
        return tl.sum(x, axis)
    return tl.sum(tl.where(has, x, 0.0), axis)


def _forward(
    u, dt, A, B, C, skip, bias,
    u_stride_b, u_stride_k, u_stride_l, u_stride_d,
    dt_stride_b, dt_stride_k, dt_stride_l, dt_stride_d,
    B_stride_b, B_stride_k, B_stride_l, B_stride_n,
    C_stride_b, C_stride_k, C_stride_l, C_stride_n,
    dt_weight, dt_weight_stride_k, dt_weight_stride_r, dt_weight_stride_d,
    channels, length, width,
    y_sum, y,
    K: constexpr, N: constexpr, R: constexpr, MAP: constexpr, WIDE: constexpr, DOT: constexpr,
    BLOCK_T: constexpr, BLOCK_D: constexpr, BLOCK_N: constexpr, BLOCK_R: constexpr,
):  # fmt: skip
    """``delta = softplus(dt + bias)``, ``h = exp(delta A) h + delta u B``, ``y = C h + skip u``, summed over k.

    With a rank R, dt is low-rank, (B, K, L, R), and ``dt_weight_KRD`` maps it to the channels.
    """
    picture = tl.program_id(0).to(tl.int64)  # tensors may have 2^31 or more elements
    d, n, t = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    if WIDE:
        d = d.to(tl.int64)
    has_d = d < channels
    first_t, last_t = (t == 0)[:, None, None], (t == BLOCK_T - 1)[:, None, None]
    for k in tl.static_range(K):
        kd = k * channels + d
        A_dn = tl.load(A + kd[:, None] * N + n[None, :], has_d[:, None] & (n < N)[None, :], 0.0)
        skip_d = tl.load(skip + kd, has_d, 0.0)
        bias_d = tl.load(bias + kd, has_d, 0.0) * 1.4426950408889634
        weight = _dt_weight(
            dt_weight + k * dt_weight_stride_k, dt_weight_stride_r, dt_weight_stride_d, d, has_d, DOT, R, BLOCK_R
        )
        u_k = _of_direction(u, picture, u_stride_b, k, u_stride_k), u_stride_l, u_stride_d
        dt_k = _of_direction(dt, picture, dt_stride_b, k, dt_stride_k), dt_stride_l, dt_stride_d
        B_k = _of_direction(B, picture, B_stride_b, k, B_stride_k), B_stride_l, B_stride_n
        C_k = _of_direction(C, picture, C_stride_b, k, C_stride_k), C_stride_l, C_stride_n
        out = (picture if MAP else picture * K + k) * length * channels
        h_dn = tl.zeros((1, BLOCK_D, BLOCK_N), tl.float32)
        first = 0
        while first < length:
            at_t, has_t = _positions(first, length, width, k, K, MAP, WIDE, BLOCK_T)
            u_td, _, _, _, a_tdn, b_tdn = _recurrence(
                u_k, dt_k, B_k, A_dn, weight, bias_d, at_t, d, has_d, N, R, BLOCK_N, BLOCK_R
            )
            b_tdn = tl.where(first_t, a_tdn * h_dn + b_tdn, b_tdn)
            _, h_tdn = tl.associative_scan((a_tdn, b_tdn), 0, _after)
            h_dn = tl.sum(tl.where(last_t, h_tdn, 0.0), 0, keep_dims=True)
            C_tn = _columns(C_k, at_t, N, BLOCK_N)
            y_td = _sum_products(h_tdn * C_tn[:, None, :], 2, has_d[None, :, None]) + skip_d[None, :] * u_td
            here = at_t[:, None] * channels + d[None, :]
            has_td = has_t[:, None] & has_d[None, :]
            if MAP and k > 0:
                y_td += tl.load(y_sum + out + here, has_td, 0.0)
            if MAP and k < K - 1:
                tl.store(y_sum + out + here, y_td, has_td)
            else:
                tl.store(y + out + here, y_td, has_td)
            first += BLOCK_T
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
    K: constexpr, N: constexpr, R: constexpr, MAP: constexpr, WIDE: constexpr, DOT: constexpr,
    BLOCK_T: constexpr, BLOCK_D: constexpr, BLOCK_N: constexpr, BLOCK_R: constexpr,
):  # fmt: skip
    """Gradients of all inputs: forwards for the state before each block of positions, then backwards over the blocks.

    With ``a_t = exp(delta_t A)`` and a state's gradient ``gh_t = C_t gy_t + a_{t+1} gh_{t+1}``:
    ``gC = gy h``, ``gB = delta u gh``, ``gu = delta B gh + skip gy``, ``ga_t = gh_t h_{t-1}``, ``gA = delta a ga``,
    ``gdelta = A a ga + u B gh``, ``gdt = sigmoid(dt + bias) gdelta``.
    """
    picture, block = tl.program_id(0).to(tl.int64), tl.program_id(1)  # tensors may have 2^31 or more elements
    d, n, t = block * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    if WIDE:
        d = d.to(tl.int64)
    has_d, has_n = d < channels, n < N
    has_dn = has_d[:, None] & has_n[None, :]
    first_t, last_t = (t == 0)[:, None, None], (t == BLOCK_T - 1)[:, None, None]
    dn = (d[:, None] * N + n[None, :])[None, :, :]
    state = states + picture * tl.cdiv(length, BLOCK_T) * channels * N
    partial = block * tl.num_programs(0) + picture
    for k in tl.static_range(K):
        kd = k * channels + d
        A_dn = tl.load(A + kd[:, None] * N + n[None, :], has_dn, 0.0)
        skip_d = tl.load(skip + kd, has_d, 0.0)
        bias_d = tl.load(bias + kd, has_d, 0.0) * 1.4426950408889634
        weight = _dt_weight(
            dt_weight + k * dt_weight_stride_k, dt_weight_stride_r, dt_weight_stride_d, d, has_d, DOT, R, BLOCK_R
        )
        u_k = _of_direction(u, picture, u_stride_b, k, u_stride_k), u_stride_l, u_stride_d
        dt_k = _of_direction(dt, picture, dt_stride_b, k, dt_stride_k), dt_stride_l, dt_stride_d
        B_k = _of_direction(B, picture, B_stride_b, k, B_stride_k), B_stride_l, B_stride_n
        C_k = _of_direction(C, picture, C_stride_b, k, C_stride_k), C_stride_l, C_stride_n
        gy_k = _of_direction(gy, picture, gy_stride_b, k, gy_stride_k), gy_stride_l, gy_stride_d
        gdt_k = _of_direction(gdt, picture, gdt_stride_b, k, gdt_stride_k)
        out = (picture if MAP else picture * K + k) * length * channels

        h_dn = tl.zeros((1, BLOCK_D, BLOCK_N), tl.float32)
        first = 0
        while first < length:
            tl.store(state + dn, h_dn, has_dn[None, :, :])
            at_t, _ = _positions(first, length, width, k, K, MAP, WIDE, BLOCK_T)
            _, _, _, _, a_tdn, b_tdn = _recurrence(
                u_k, dt_k, B_k, A_dn, weight, bias_d, at_t, d, has_d, N, R, BLOCK_N, BLOCK_R
            )
            b_tdn = tl.where(first_t, a_tdn * h_dn + b_tdn, b_tdn)
            _, h_tdn = tl.associative_scan((a_tdn, b_tdn), 0, _after)
            h_dn = tl.sum(tl.where(last_t, h_tdn, 0.0), 0, keep_dims=True)
            first += BLOCK_T
            state += channels * N
        tl.debug_barrier()

        a_gh_dn = tl.zeros((1, BLOCK_D, BLOCK_N), tl.float32)  # at the step after the block
        gA_dn = tl.zeros((BLOCK_D, BLOCK_N), tl.float32)
        gskip_d, gbias_d = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
        while first > 0:
            first -= BLOCK_T
            state -= channels * N
            at_t, has_t = _positions(first, length, width, k, K, MAP, WIDE, BLOCK_T)
            has_td = has_t[:, None] & has_d[None, :]
            u_td, x_td, delta_td, B_tn, a_tdn, b_tdn = _recurrence(
                u_k, dt_k, B_k, A_dn, weight, bias_d, at_t, d, has_d, N, R, BLOCK_N, BLOCK_R
            )
            C_tn = _columns(C_k, at_t, N, BLOCK_N)
            gy_td = tl.where(has_t[:, None], _rows(gy_k, at_t, d, has_d), 0.0)  # so missing steps add nothing
            one_tdn = tl.full((BLOCK_T, BLOCK_D, BLOCK_N), 1.0, tl.float32)
            h_dn = tl.load(state + dn, has_dn[None, :, :], 0.0)
            h_tdn = tl.where(first_t, h_dn, 0.0 * one_tdn)
            _, before_tdn, _, _ = tl.associative_scan((one_tdn, h_tdn, a_tdn, b_tdn), 0, _before)
            h_tdn = a_tdn * before_tdn + b_tdn
            here_tn = ((partial * K + k) * length + at_t[:, None]) * N + n[None, :]
            has_tn = has_t[:, None] & has_n[None, :]
            tl.store(gC + here_tn, _sum_products(h_tdn * gy_td[:, :, None], 1, has_d[None, :, None]), has_tn)
            gh_tdn = gy_td[:, :, None] * C_tn[:, None, :]
            gh_tdn = tl.where(last_t, gh_tdn + a_gh_dn, gh_tdn)
            _, gh_tdn, _ = tl.associative_scan((one_tdn, gh_tdn, a_tdn), 0, _backwards, reverse=True)
            a_gh_tdn = a_tdn * gh_tdn
            a_gh_dn = tl.sum(tl.where(first_t, a_gh_tdn, 0.0), 0, keep_dims=True)
            a_ga_tdn = a_gh_tdn * before_tdn
            delta_td *= 0.6931471805599453
            tl.store(
                gB + here_tn, _sum_products(gh_tdn * (delta_td * u_td)[:, :, None], 1, has_d[None, :, None]), has_tn
            )
            gh_B_td = _sum_products(gh_tdn * B_tn[:, None, :], 2, has_d[None, :, None])
            gdelta_td = _sum_products(a_ga_tdn * A_dn[None, :, :], 2, has_d[None, :, None]) + gh_B_td * u_td
            z_td = tl.exp2(-tl.abs(x_td))
            gdt_td = gdelta_td * (tl.where(x_td >= 0, 1.0, z_td) / (1 + z_td))
            gu_td = gh_B_td * delta_td + skip_d[None, :] * gy_td
            gA_dn += tl.sum(a_ga_tdn * delta_td[:, :, None], 0)  # each thread has all of these positions
            gskip_d += _sum_products(gy_td * u_td, 0, has_d[None, :])
            gbias_d += _sum_products(gdt_td, 0, has_d[None, :])

            here = out + at_t[:, None] * channels + d[None, :]
            if MAP and k > 0:
                gu_td += tl.load(gu_sum + here, has_td, 0.0)
            if MAP and k < K - 1:
                tl.store(gu_sum + here, gu_td, has_td)
            else:
                tl.store(gu + here, gu_td, has_td)
            tl.store(gdt_k + at_t[:, None] * gdt_stride_l + d[None, :] * gdt_stride_d, gdt_td, has_td)
        kd += picture * K * channels
        tl.store(gA + kd[:, None] * N + n[None, :], gA_dn, has_dn)
        tl.store(gskip + kd, gskip_d, has_d)
        tl.store(gbias + kd, gbias_d, has_d)
        tl.debug_barrier()  # the next direction overwrites these states and adds to what this one wrote


@cache
def kernels() -> list[Any]:
    """Returns the forward and the backward kernel."""
    parts = (_log2_softplus, _after, _before, _backwards, _positions, _rows, _columns, _dt_weight, _log2_dt)
    return jit.compiled(globals(), _forward, _backward, _recurrence, _of_direction, _sum_products, *parts)[:2]
