"""The convolution of pictures, which have few channels, with bias and ReLU; for inference, on a GPU by a Triton kernel.

There, cuDNN first widens the channels to 8, and bias and ReLU are a pass of their own: several times the memory traffic
of this kernel, which multiplies each pixel's whole neighbourhood by the weight as one row of a matrix.

Shape letters: B batch, H and W sides, C channels of the pictures, D of the result, k side of a kernel. In the Triton
kernel, ``x_pn`` holds the neighbourhoods, of k * k * C numbers, of some pixels of the result.
"""

# The kernel's arguments have no annotations, because Triton would interpret them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops import jit
from mobilemamba.ops.arguments import check, check_kernel
from mobilemamba.ops.operator import implement_on_cuda, inference_operator

tl: Any = None  # triton.language, set when the kernel is first needed
constexpr = Any  # Triton goes by the annotation's name

#: Numbers of a neighbourhood that the kernel can multiply at once.
MOST = 64
_PIXELS = 64  # of the result that a program computes at a time
_CHANNELS = 32  # of a program
_TILES = 4  # times that a program does so, where enough programs remain to keep a GPU busy
_ENOUGH = 512

_LAYOUT = {"x": "BHWC", "weight": "kkCD", "bias": "D"}


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, relu: bool = False) -> None:
    sizes = check("stem_conv", _LAYOUT, (x, weight, bias))
    check_kernel("stem_conv", sizes["k"])
    k, channels = sizes["k"], sizes["C"]
    if not 1 <= k * k * channels <= MOST:
        raise ConfigError(f"stem_conv: kernels of {k} x {k} x {channels} numbers; expected 1 to {MOST} numbers")
    if not 1 <= stride < 2**31:
        raise ConfigError(f"stem_conv: stride={stride}; expected 1 to {2**31 - 1}")


def _result_shape(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, relu: bool = False) -> list[int]:
    batch, height, width, _ = x.shape
    return [batch, (height + stride - 1) // stride, (width + stride - 1) // stride, bias.shape[0]]


def definition(x_BHWC: Tensor, weight_kkCD: Tensor, bias: Tensor, stride: int = 1, relu: bool = False) -> Tensor:
    """Convolves with zero padding, by PyTorch.

    Args:
        x_BHWC: Pictures, of any strides.
        weight_kkCD: Weight; k is odd, and k * k * C at most ``MOST``.
        bias: (D,).
        stride: Rows and columns of x between neighbouring pixels of the result.
        relu: Whether negative results become 0.

    Returns:
        (B, H, W, D) with H and W divided by the stride and rounded up, of x's dtype.
    """
    weight, bias = weight_kkCD.permute(3, 2, 0, 1).to(x_BHWC.dtype), bias.to(x_BHWC.dtype)
    y = F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, bias, stride, len(weight_kkCD) // 2)
    return (F.relu(y) if relu else y).permute(0, 2, 3, 1)


@inference_operator(_check_arguments, _result_shape)
def stem_conv(x_BHWC: Tensor, weight_kkCD: Tensor, bias: Tensor, stride: int = 1, relu: bool = False) -> Tensor:
    """Computes ``definition``, on a GPU by the kernel; the result is contiguous."""
    return definition(x_BHWC, weight_kkCD, bias, stride, relu).contiguous()


def _stem_conv(
    x, y, weight, bias,
    x_stride_b, x_stride_h, x_stride_w, x_stride_c,
    height, width, y_height, y_width,
    C: constexpr, D: constexpr, KERNEL: constexpr, STRIDE: constexpr, RELU: constexpr, DOT: constexpr,
    TILES: constexpr, BLOCK_P: constexpr, BLOCK_N: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """``y = weight * x + bias``, or its ReLU, for some tiles of pixels, one after another."""
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    has_n, has_d = n < KERNEL * KERNEL * C, d < D
    weight_nd = tl.load(weight + n[:, None] * D + d[None, :], has_n[:, None] & has_d[None, :], 0.0).to(DOT)
    bias_pd = tl.broadcast_to(tl.load(bias + d, has_d, 0.0).to(tl.float32)[None, :], (BLOCK_P, BLOCK_D))
    down, across = n // (KERNEL * C) - KERNEL // 2, n // C % KERNEL - KERNEL // 2
    at_n = down.to(tl.int64) * x_stride_h + across.to(tl.int64) * x_stride_w + (n % C).to(tl.int64) * x_stride_c
    strips = tl.cdiv(y_height * y_width, TILES * BLOCK_P)
    picture, strip = tl.program_id(0) // strips, tl.program_id(0) % strips
    x += picture.to(tl.int64) * x_stride_b + at_n[None, :]
    y += picture.to(tl.int64) * y_height * y_width * D
    for tile in tl.range(TILES, num_stages=1):  # other programs hide the time that loads take
        p = (strip * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        h, w = p // y_width * STRIDE, p % y_width * STRIDE
        row, column = h[:, None] + down[None, :], w[:, None] + across[None, :]
        # As unsigned numbers, those before the first are larger than any side.
        has_pn = (row.to(tl.uint32) < height) & (column.to(tl.uint32) < width) & has_n[None, :]
        has_p = p < y_height * y_width
        at_p = h.to(tl.int64) * x_stride_h + w.to(tl.int64) * x_stride_w
        x_pn = tl.load(x + at_p[:, None], has_pn, 0.0).to(DOT)
        y_pd = tl.dot(x_pn, weight_nd, bias_pd, input_precision="tf32x3", out_dtype=tl.float32)
        if RELU:
            y_pd = tl.where(y_pd < 0, 0.0, y_pd)  # keeps NaN
        tl.store(y + p[:, None].to(tl.int64) * D + d[None, :], y_pd, has_p[:, None] & has_d[None, :])


@cache
def _kernels() -> list[Any]:
    return jit.compiled(globals(), _stem_conv)


def _by_triton(x_BHWC: Tensor, weight_kkCD: Tensor, bias: Tensor, stride: int = 1, relu: bool = False) -> Tensor:
    """Computes the operator on a GPU."""
    y = x_BHWC.new_empty(_result_shape(x_BHWC, weight_kkCD, bias, stride, relu))
    pictures, y_height, y_width, channels = y.shape
    pixels, blocks = y_height * y_width, -(-channels // _CHANNELS)
    tiles = _TILES if pictures * pixels * blocks >= _TILES * _PIXELS * _ENOUGH else 1
    jit.launch(
        _kernels()[0],
        (pictures * -(-pixels // (tiles * _PIXELS)), blocks),
        x_BHWC,
        y,
        weight_kkCD.contiguous(),
        bias.contiguous(),
        *x_BHWC.stride(),
        *x_BHWC.shape[1:3],
        y_height,
        y_width,
        C=x_BHWC.shape[3],
        D=channels,
        KERNEL=len(weight_kkCD),
        STRIDE=stride,
        RELU=relu,
        DOT=jit.dot_type(x_BHWC.dtype),
        TILES=tiles,
        BLOCK_P=_PIXELS,
        BLOCK_N=max(jit.padded(weight_kkCD[..., 0].numel()), 16),
        BLOCK_D=_CHANNELS,
        num_warps=2,
    )
    return y


implement_on_cuda("stem_conv", _check_arguments, _by_triton)
