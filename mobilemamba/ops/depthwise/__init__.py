"""A zero-padded depthwise convolution followed by an activation, for inference.

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

#: Activations, named as in oneDNN.
Activation = Literal["none", "relu", "swish", "sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
}


def definition(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: Activation = "none", stride: int = 1) -> Tensor:
    """Computes the operation by PyTorch's convolution.

    Args:
        x_BHWC: Maps.
        weight_kkC: Weight in float32; k is odd.
        bias: (C,), in float32.
        act: Activation of the result.
        stride: Rows and columns of x between neighbouring pixels of the result.

    Returns:
        (B, H, W, C) with H and W divided by the stride and rounded up, of x's dtype.
    """
    weight, bias = weight_kkC.permute(2, 0, 1).unsqueeze(1).to(x_BHWC.dtype), bias.to(x_BHWC.dtype)
    y = F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, bias, stride, len(weight_kkC) // 2, groups=len(bias))
    return ACTIVATIONS[act](y).permute(0, 2, 3, 1)


depthwise_conv = Backends("depthwise", definition, library.backend(native.depthwise_conv), triton.BACKEND)
