"""The depthwise convolution by the compiled CPU kernel; channels-last, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check, check_kernel
from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, kernel_dtype, lay_out
from mobilemamba.ops.native.structures import DepthwiseArgs
from mobilemamba.ops.operator import inference_operator

ACTS = {"none": 0, "relu": 1, "swish": 2, "sigmoid": 3}  # the values of ``activation`` in depthwise.c
RELU_AFFINE = 4  # one more, for MRFFI: a ReLU, then scale and shift, then a ReLU

_LAYOUT = {"x": "BHWC", "weight": "kkC", "bias": "C"}


def call_depthwise(act: int, x: Tensor, y: Tensor, *numbers: Tensor, stride: int = 1) -> None:
    """Calls the function of depthwise.c; maps are (B, H, W, C) of one dtype.

    Args:
        act: Number of the activation.
        x: Input maps.
        y: Maps that the output is written to.
        numbers: Weight (k, k, C) and bias (C,); with ``RELU_AFFINE`` also scale and shift (C,).
        stride: Rows and columns of x between neighbouring pixels of y.
    """
    weight, bias, *affine = (number.float().contiguous() for number in numbers)
    args = DepthwiseArgs(
        *x.shape, *y.shape[1:3], weight.shape[0], stride, DTYPE_CODES[x.dtype], torch.get_num_threads(), act
    )
    args.x, args.y, args.weight, args.bias = x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr()
    args.x_stride[:], args.y_stride[:] = x.stride()[:3], y.stride()[:3]
    if affine:
        args.scale, args.shift = (number.data_ptr() for number in affine)
    library.call("mobilemamba_depthwise", args)


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor, act: str = "none", stride: int = 1) -> None:
    """Checks the operator's arguments, on any device."""
    check_kernel("depthwise_conv", check("depthwise_conv", _LAYOUT, (x, weight, bias))["k"])
    if act not in ACTS:
        raise ConfigError(f"depthwise_conv: activation {act!r}; expected one of {', '.join(ACTS)}")
    if not 1 <= stride < 2**31:
        raise ConfigError(f"depthwise_conv: stride={stride}; expected 1 to {2**31 - 1}")


def result_shape(x: Tensor, weight: Tensor, bias: Tensor, act: str = "none", stride: int = 1) -> list[int]:
    """Returns the shape of the operator's result: the sides are divided by the stride and rounded up."""
    batch, height, width, channels = x.shape
    return [batch, (height + stride - 1) // stride, (width + stride - 1) // stride, channels]


@inference_operator(check_arguments, result_shape)
def depthwise_conv(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: str = "none", stride: int = 1) -> Tensor:
    """Computes the operator on a CPU, in float32 or bfloat16."""
    x = lay_out(x_BHWC, kernel_dtype(x_BHWC.dtype))
    y = x.new_empty(result_shape(x, weight_kkC, bias, act, stride))
    call_depthwise(ACTS[act], x, y, weight_kkC, bias, stride=stride)
    return y.to(x_BHWC.dtype)
