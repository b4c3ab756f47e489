"""A depthwise convolution with zeros around, and an activation, in inference.

Shape letters: B batch, H and W sides, C channels, k side of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.backends import Backends
from mobilemamba.ops.depthwise import native, triton
from mobilemamba.ops.native import library

#: Activations as oneDNN names them.
Activation = Literal["none", "relu", "swish", "sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}


def definition(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: Activation = "none", stride: int = 1) -> Tensor:
    """By PyTorch's convolution.

    Args:
        x_BHWC: Maps.
        weight_kkC: float32, with an odd number of rows and columns.
        bias: (C,) float32.
        act: Activation of the result.
        stride: Rows and columns from one of the result to the next.

    Returns:
        (B, H, W, C) with sides divided by the stride and rounded up, of x's dtype.
    """
    weight, bias = weight_kkC.permute(2, 0, 1).unsqueeze(1).to(x_BHWC.dtype), bias.to(x_BHWC.dtype)
    y = F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, bias, stride, len(weight_kkC) // 2, groups=len(bias))
    return ACTIVATIONS[act](y).permute(0, 2, 3, 1)


depthwise_conv = Backends("depthwise", definition, library.backend(native.depthwise_conv), triton.BACKEND)
