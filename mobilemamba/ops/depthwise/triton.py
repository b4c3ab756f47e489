"""The depthwise convolution as a Triton kernel, channels-last, with what follows it in the same pass; no gradients.

Shape letters: B batch, H and W sides, C channels, k side of a kernel. In a kernel ``y_pc`` is of a tile of positions
and of channels.
"""

# The kernel's arguments have no annotations, as Triton would read them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.depthwise import native
from mobilemamba.ops.operator import implement_on_cuda

tl: Any = None  # triton.language, once the kernel is asked for
constexpr = Any  # Triton goes by the annotation's name

#: Positions and channels of a program's tile; four warps. Sixteen positions share a weight that was read.
_TILE = (16, 32)


def _relu(x):
    return tl.where(x < 0, 0.0, x)  # which keeps a NaN


def _depthwise(
    x, y, weight, bias, scale, shift,
    x_stride_b, x_stride_h, x_stride_w, y_stride_b, y_stride_h, y_stride_w,
    pictures, height, width, channels,
    KERNEL: constexpr, ACT: constexpr, BLOCK_P: constexpr, BLOCK_C: constexpr,
):  # fmt: skip
    """``y = act(weight * x + bias)``; activations are numbered as in ``native``."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    picture = (p // (height * width)).to(tl.int64)  # tensors may have 2^31 elements and more
    h, w = (p // width % height).to(tl.int64), (p % width).to(tl.int64)
    has_p, has_c = picture < pictures, c < channels
    x += (picture * x_stride_b)[:, None] + c[None, :]
    y_pc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in range(KERNEL):
        row = h + (i - KERNEL // 2)
        has_row = has_p & (row >= 0) & (row < height)
        for j in tl.static_range(KERNEL):
            column = w + (j - KERNEL // 2)
            has_pc = (has_row & (column >= 0) & (column < width))[:, None] & has_c[None, :]
            x_pc = tl.load(x + (row * x_stride_h + column * x_stride_w)[:, None], has_pc, 0.0).to(tl.float32)
            y_pc += x_pc * tl.load(weight + (i * KERNEL + j) * channels + c, has_c, 0.0)[None, :]
    y_pc += tl.load(bias + c, has_c, 0.0)[None, :]
    if ACT == 1:
        y_pc = _relu(y_pc)
    elif ACT == 2:
        y_pc = y_pc / (1 + tl.exp(-y_pc))
    elif ACT == 3:
        y_pc = 1 / (1 + tl.exp(-y_pc))
    elif ACT == 4:
        scale_c, shift_c = tl.load(scale + c, has_c, 0.0), tl.load(shift + c, has_c, 0.0)
        y_pc = _relu(_relu(y_pc) * scale_c[None, :] + shift_c[None, :])
    y += (picture * y_stride_b + h * y_stride_h + w * y_stride_w)[:, None] + c[None, :]
    tl.store(y, y_pc, has_p[:, None] & has_c[None, :])


@cache
def _kernels() -> list[Any]:
    return jit.compiled(globals(), _depthwise, _relu)


def convolve(act: int, x_BHWC: Tensor, y_BHWC: Tensor, *numbers: Tensor) -> None:
    """As ``native.call_depthwise``, but x may have any strides and dtype; y's channels lie side by side."""
    x = x_BHWC if x_BHWC.stride(-1) == 1 else x_BHWC.contiguous()
    weight, bias, *affine = (number.float().contiguous() for number in numbers)
    scale, shift = affine or (bias, bias)
    batch, height, width, channels = x.shape
    grid = (-(-batch * height * width // _TILE[0]), -(-channels // _TILE[1]))
    with torch.cuda.device_of(x):
        _kernels()[0][grid](
            x,
            y_BHWC,
            weight,
            bias,
            scale,
            shift,
            *x.stride()[:3],
            *y_BHWC.stride()[:3],
            batch,
            height,
            width,
            channels,
            KERNEL=weight.shape[0],
            ACT=act,
            BLOCK_P=_TILE[0],
            BLOCK_C=_TILE[1],
            num_warps=4,
        )


def depthwise_conv(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: str = "none") -> Tensor:
    """Arguments and result as in the package's function."""
    y = x_BHWC.new_empty(x_BHWC.shape)
    convolve(native.ACTS[act], x_BHWC, y, weight_kkC, bias)
    return y


implement_on_cuda("depthwise_conv", native.check_arguments, depthwise_conv)

BACKEND = jit.backend(native.depthwise_conv)  # the operator, one for all devices
