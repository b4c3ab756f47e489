"""The depthwise convolution and an activation as one channels-last Triton kernel, without gradients.

Shape letters: B batch, H and W sides, C channels, k side of a kernel. In the kernel, ``y_pc`` holds a tile of positions
and channels.
"""

# The kernel's arguments have no annotations, because Triton would interpret them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.depthwise import native
from mobilemamba.ops.operator import implement_on_cuda

tl: Any = None  # triton.language, set when the kernel is first needed
constexpr = Any  # Triton goes by the annotation's name

_COLUMNS = 4  # of a strip, which share what is read
_BLOCK_C = 32  # channels of a program
_LARGE = (32, 4)  # strips and warps of a program
_SMALL = (8, 1)  # the same where large programs would be too few
_ENOUGH = 512  # programs that keep a GPU busy


def _relu(x):
    return tl.where(x < 0, 0.0, x)  # keeps NaN


def _numbers(x, c, has_c):
    return tl.load(x + c, has_c, 0.0).to(tl.float32)[None, :]


def _depthwise(
    x, y, weight, bias, scale, shift,
    x_stride_b, x_stride_h, x_stride_w, y_stride_b, y_stride_h, y_stride_w,
    pictures, height, width, y_height, y_width, channels,
    KERNEL: constexpr, STRIDE: constexpr, ACT: constexpr, COLUMNS: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """``y = act(weight * x + bias)``; ``native`` numbers the activations. A program computes strips of columns."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    strips = tl.cdiv(y_width, COLUMNS)
    picture = (p // (y_height * strips)).to(tl.int64)  # tensors may have 2^31 elements and more
    h, w = (p // strips % y_height).to(tl.int64), (p % strips * COLUMNS).to(tl.int64)
    has_p, has_c = picture < pictures, c < channels
    x += (picture * x_stride_b)[:, None] + c[None, :]
    bias_pc = tl.broadcast_to(_numbers(bias, c, has_c), (BLOCK_P, BLOCK_C))
    y_pc = tl.tuple(())  # a tile for each column of a strip
    for _ in tl.static_range(COLUMNS):
        y_pc += (bias_pc,)
    for i in range(KERNEL):
        row = h * STRIDE + (i - KERNEL // 2)
        has_row = has_p & (row >= 0) & (row < height)
        sums = tl.tuple(())
        for column in tl.static_range(COLUMNS):
            y_column_pc = y_pc[column]
            for j in tl.static_range(KERNEL):
                at = w * STRIDE + (column * STRIDE + j - KERNEL // 2)
                has_pc = (has_row & (at >= 0) & (at < width))[:, None] & has_c[None, :]
                x_pc = tl.load(x + (row * x_stride_h + at * x_stride_w)[:, None], has_pc, 0.0).to(tl.float32)
                y_column_pc += x_pc * _numbers(weight + (i * KERNEL + j) * channels, c, has_c)
            sums += (y_column_pc,)
        y_pc = sums
    y += (picture * y_stride_b + h * y_stride_h)[:, None] + c[None, :]
    for column in tl.static_range(COLUMNS):
        z_pc = y_pc[column]
        if ACT == 1:
            z_pc = _relu(z_pc)
        elif ACT == 2:
            z_pc = z_pc / (1 + tl.exp(-z_pc))
        elif ACT == 3:
            z_pc = 1 / (1 + tl.exp(-z_pc))
        elif ACT == 4:
            z_pc = _relu(_relu(z_pc) * _numbers(scale, c, has_c) + _numbers(shift, c, has_c))
        has_pc = (has_p & (w + column < y_width))[:, None] & has_c[None, :]
        tl.store(y + ((w + column) * y_stride_w)[:, None], z_pc, has_pc)


@cache
def _kernels() -> list[Any]:
    return jit.compiled(globals(), _depthwise, _relu, _numbers)


def convolve(act: int, x_BHWC: Tensor, y_BHWC: Tensor, *numbers: Tensor, stride: int = 1) -> None:
    """Computes what ``native.call_depthwise`` does, for x of any strides and dtype; y's channels must be adjacent."""
    x = x_BHWC if x_BHWC.stride(-1) == 1 else x_BHWC.contiguous()
    weight, bias, *affine = (number.contiguous() for number in numbers)
    scale, shift = affine or (bias, bias)
    batch, height, width, channels = y_BHWC.shape
    strips, blocks = batch * height * -(-width // _COLUMNS), -(-channels // _BLOCK_C)
    block_p, warps = _LARGE if strips * blocks >= _LARGE[0] * _ENOUGH else _SMALL
    jit.launch(
        _kernels()[0],
        (-(-strips // block_p), blocks),
        x,
        y_BHWC,
        weight,
        bias,
        scale,
        shift,
        *x.stride()[:3],
        *y_BHWC.stride()[:3],
        *x.shape[:3],
        height,
        width,
        channels,
        KERNEL=weight.shape[0],
        STRIDE=stride,
        ACT=act,
        COLUMNS=_COLUMNS,
        BLOCK_P=block_p,
        BLOCK_C=_BLOCK_C,
        num_warps=warps,
    )


def depthwise_conv(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: str = "none", stride: int = 1) -> Tensor:
    """Computes the operator on a GPU; arguments and result as in ``mobilemamba.ops.depthwise.definition``."""
    y = x_BHWC.new_empty(native.result_shape(x_BHWC, weight_kkC, bias, act, stride))
    convolve(native.ACTS[act], x_BHWC, y, weight_kkC, bias, stride=stride)
    return y


implement_on_cuda("depthwise_conv", native.check_arguments, depthwise_conv)

BACKEND = jit.backend(native.depthwise_conv)  # the same operator serves all devices
