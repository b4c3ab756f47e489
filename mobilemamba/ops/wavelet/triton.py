"""The convolution in Haar's wavelet domain as one channels-last Triton kernel, and its gradients without atomics.

The sub-bands are never written to memory. A program computes a tile of positions of the wavelet domain and channels:
it transforms the 2 x 2 pixels of every position under the kernel as it reads them, and its four sums back.

Shape letters: B batch, H and W sides, C channels, k side of a kernel. In a kernel, ``x_pc`` holds a tile of positions
and channels.
"""

# The kernels' arguments have no annotations, because Triton would interpret them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.wavelet import native

tl: Any = None  # triton.language, set when the kernels are first needed
constexpr = Any  # Triton goes by the annotation's name

#: Positions and channels of a program's tile, for four warps. Sixteen positions share each weight read.
_TILE = (16, 32)
#: Tiles that a program sums for the weight's gradient; one partial sum is written for that many tiles.
_TILES = 32


def _haar(a, b, c, d):
    """Transforms 2 x 2 pixels to the sub-bands LL, HL, LH, HH, or back: the matrix is symmetric and its own inverse."""
    upper, lower, upper_slope, lower_slope = 0.5 * (a + b), 0.5 * (c + d), 0.5 * (a - b), 0.5 * (c - d)
    return upper + lower, upper - lower, upper_slope + lower_slope, upper_slope - lower_slope


def _lines(at, has, side, stride):
    """Returns both rows (or columns) of positions in the wavelet domain: offsets, and whether they are on the map."""
    first = 2 * at
    has &= first >= 0
    return first * stride, first * stride + stride, has & (first < side), has & (first + 1 < side)


def _pixel(x, row, column, has_row, has_column, has_c):
    """Reads one pixel of every position; zero beyond the map, as odd sides are padded."""
    has_pc = (has_row & has_column)[:, None] & has_c[None, :]
    return tl.load(x + (row + column)[:, None], has_pc, 0.0).to(tl.float32)


def _bands(x, rows, columns, has_c):
    """Returns the four sub-bands; zero beyond the wavelet domain, as the convolution is padded."""
    upper, lower, has_upper, has_lower = rows
    left, right, has_left, has_right = columns
    return _haar(
        _pixel(x, upper, left, has_upper, has_left, has_c),
        _pixel(x, upper, right, has_upper, has_right, has_c),
        _pixel(x, lower, left, has_lower, has_left, has_c),
        _pixel(x, lower, right, has_lower, has_right, has_c),
    )


def _write(y_pc, y, row, column, has_row, has_column, has_c, RELU: constexpr):
    if RELU:
        y_pc = tl.where(y_pc < 0, 0.0, y_pc)  # keeps NaN
    tl.store(y + (row + column)[:, None], y_pc, (has_row & has_column)[:, None] & has_c[None, :])


def _positions(first, pictures, height, width, BLOCK_P: constexpr):
    """Returns the picture and row and column in the wavelet domain of a tile of positions, and which of them exist."""
    h_side, w_side = (height + 1) // 2, (width + 1) // 2
    p = first + tl.arange(0, BLOCK_P)
    picture = (p // (h_side * w_side)).to(tl.int64)  # tensors may have 2^31 elements and more
    return picture, (p // w_side % h_side).to(tl.int64), (p % w_side).to(tl.int64), picture < pictures


def _convolution(
    x, weight, add, y,
    x_stride_b, x_stride_h, x_stride_w, add_stride_b, add_stride_h, add_stride_w, y_stride_b, y_stride_h, y_stride_w,
    pictures, height, width, channels,
    KERNEL: constexpr, ADD: constexpr, RELU: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """``y = IWT(weight * DWT(x))``, plus ``add`` if ADD, then a ReLU if RELU."""
    picture, h, w, has_p = _positions(tl.program_id(0) * BLOCK_P, pictures, height, width, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_c = c < channels
    x += (picture * x_stride_b)[:, None] + c[None, :]
    band = KERNEL * KERNEL * channels
    ll = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    hl, lh, hh = ll, ll, ll
    for i in range(KERNEL):
        rows = _lines(h + (i - KERNEL // 2), has_p, height, x_stride_h)
        for j in range(KERNEL):
            columns = _lines(w + (j - KERNEL // 2), has_p, width, x_stride_w)
            x_ll, x_hl, x_lh, x_hh = _bands(x, rows, columns, has_c)
            tap = weight + (i * KERNEL + j) * channels + c
            ll += x_ll * tl.load(tap, has_c, 0.0)[None, :]
            hl += x_hl * tl.load(tap + band, has_c, 0.0)[None, :]
            lh += x_lh * tl.load(tap + 2 * band, has_c, 0.0)[None, :]
            hh += x_hh * tl.load(tap + 3 * band, has_c, 0.0)[None, :]
    upper_left, upper_right, lower_left, lower_right = _haar(ll, hl, lh, hh)
    if ADD:
        add += (picture * add_stride_b)[:, None] + c[None, :]
        rows, columns = _lines(h, has_p, height, add_stride_h), _lines(w, has_p, width, add_stride_w)
        upper_left += _pixel(add, rows[0], columns[0], rows[2], columns[2], has_c)
        upper_right += _pixel(add, rows[0], columns[1], rows[2], columns[3], has_c)
        lower_left += _pixel(add, rows[1], columns[0], rows[3], columns[2], has_c)
        lower_right += _pixel(add, rows[1], columns[1], rows[3], columns[3], has_c)
    y += (picture * y_stride_b)[:, None] + c[None, :]
    rows, columns = _lines(h, has_p, height, y_stride_h), _lines(w, has_p, width, y_stride_w)
    _write(upper_left, y, rows[0], columns[0], rows[2], columns[2], has_c, RELU)
    _write(upper_right, y, rows[0], columns[1], rows[2], columns[3], has_c, RELU)
    _write(lower_left, y, rows[1], columns[0], rows[3], columns[2], has_c, RELU)
    _write(lower_right, y, rows[1], columns[1], rows[3], columns[3], has_c, RELU)


def _weight_gradient(
    x, grad, partial,
    x_stride_b, x_stride_h, x_stride_w, grad_stride_b, grad_stride_h, grad_stride_w,
    pictures, height, width, channels,
    KERNEL: constexpr, TILES: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """Sums the products of the sub-bands of x and of the gradient over some tiles, for one tap of the kernel."""
    chunk, i, j = tl.program_id(0), tl.program_id(2) // KERNEL, tl.program_id(2) % KERNEL
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    has_c = c < channels
    ll = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    hl, lh, hh = ll, ll, ll
    first = chunk * TILES * BLOCK_P
    end = tl.minimum(first + TILES * BLOCK_P, pictures * ((height + 1) // 2) * ((width + 1) // 2))
    while first < end:
        picture, h, w, has_p = _positions(first, pictures, height, width, BLOCK_P)
        rows, columns = _lines(h, has_p, height, grad_stride_h), _lines(w, has_p, width, grad_stride_w)
        g_ll, g_hl, g_lh, g_hh = _bands(grad + (picture * grad_stride_b)[:, None] + c[None, :], rows, columns, has_c)
        rows = _lines(h + i - KERNEL // 2, has_p, height, x_stride_h)
        columns = _lines(w + j - KERNEL // 2, has_p, width, x_stride_w)
        x_ll, x_hl, x_lh, x_hh = _bands(x + (picture * x_stride_b)[:, None] + c[None, :], rows, columns, has_c)
        ll += g_ll * x_ll
        hl += g_hl * x_hl
        lh += g_lh * x_lh
        hh += g_hh * x_hh
        first += BLOCK_P
    band = KERNEL * KERNEL * channels
    partial += tl.cast(chunk, tl.int64) * 4 * band + tl.program_id(2) * channels + c
    tl.store(partial, tl.sum(ll, 0), has_c)
    tl.store(partial + band, tl.sum(hl, 0), has_c)
    tl.store(partial + 2 * band, tl.sum(lh, 0), has_c)
    tl.store(partial + 3 * band, tl.sum(hh, 0), has_c)


@cache
def _kernels() -> tuple[Any, Any]:
    """Returns the convolution's kernel and that of its weight's gradient."""
    parts = (_positions, _lines, _bands, _pixel, _write, _haar)
    convolution, gradient, *_ = jit.compiled(globals(), _convolution, _weight_gradient, *parts)
    return convolution, gradient


def _side_by_side(x_BHWC: Tensor) -> Tensor:
    return x_BHWC if x_BHWC.stride(-1) == 1 else x_BHWC.contiguous()


def _launch(kernel: Any, maps: list[Tensor], tensors: list[Tensor], tiles: int, *more: int, **constants: int) -> None:
    """Launches a kernel.

    Args:
        kernel: The kernel.
        maps: (B, H, W, C) with adjacent channels; the kernel takes their strides.
        tensors: All tensors that the kernel takes, in order.
        tiles: Tiles of positions per program.
        more: Further dimensions of the grid.
        constants: Constants of the kernel.
    """
    batch, height, width, channels = maps[0].shape
    positions = batch * -(-height // 2) * -(-width // 2)
    strides = [stride for x in maps for stride in x.stride()[:3]]
    grid = (-(-positions // (_TILE[0] * tiles)), -(-channels // _TILE[1]), *more)
    constants |= {"BLOCK_P": _TILE[0], "BLOCK_C": _TILE[1]}
    jit.launch(kernel, grid, *tensors, *strides, batch, height, width, channels, **constants, num_warps=4)


def convolve(
    x_BHWC: Tensor, weight_4kkC: Tensor, y_BHWC: Tensor, add: Tensor | None = None, relu: bool = False
) -> None:
    """Writes the convolution to y, plus ``add`` and through a ReLU if given.

    Args:
        x_BHWC: Maps with any strides.
        weight_4kkC: Weight as ``native.by_band`` returns it.
        y_BHWC: Maps to write to, with adjacent channels.
        add: Maps of the same shape with any strides.
        relu: Whether to apply a ReLU to the sum.
    """
    x = _side_by_side(x_BHWC)
    other = x if add is None else _side_by_side(add)
    constants = {"KERNEL": weight_4kkC.shape[1], "ADD": add is not None, "RELU": relu}
    _launch(_kernels()[0], [x, other, y_BHWC], [x, weight_4kkC, other, y_BHWC], 1, **constants)


def haar_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    """Computes the operator ``haar_conv`` on any device that Triton runs on."""
    y = x_BHWC.new_empty(x_BHWC.shape)
    convolve(x_BHWC, native.by_band(weight), y)
    return y


def weight_gradient(grad_BHWC: Tensor, x_BHWC: Tensor, weight: Tensor) -> Tensor:
    """Computes the operator ``haar_conv_weight``: the gradient of the weight."""
    x, grad, kernel = _side_by_side(x_BHWC), _side_by_side(grad_BHWC), weight.shape[-1]
    batch, height, width, channels = x.shape
    positions = batch * -(-height // 2) * -(-width // 2)
    chunks = -(-positions // (_TILE[0] * _TILES))
    partial = x.new_empty(chunks, 4, kernel, kernel, channels, dtype=torch.float32)
    constants = {"KERNEL": kernel, "TILES": _TILES}
    _launch(_kernels()[1], [x, grad], [x, grad, partial], _TILES, kernel**2, **constants)
    return native.from_bands(partial.sum(0), weight)


native.implement_on_cuda(haar_conv, weight_gradient)


def unavailable(device: torch.device, dtype: torch.dtype, haar: bool = True) -> str | None:
    """Returns why the kernels cannot run on the device in the dtype, or None if they can."""
    return jit.why_not_on(device, dtype) or native.why_not(haar)


BACKEND = jit.backend(native.forward, unavailable=unavailable)
