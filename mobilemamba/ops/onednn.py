"""Convolutions and linear layers by oneDNN, with packed weights and fused activations or additions.

PyTorch keeps these operators for its compiler and may change them in any release. They are therefore called only here,
and tried once before they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.backends import Backend, Backends

#: Padding, stride and dilation, each for both sides, and groups.
Geometry = tuple[list[int], list[int], list[int], int]


def pack_convolution(weight: Tensor, geometry: Geometry, size: torch.Size) -> Tensor:
    """Packs a weight into oneDNN's layout for maps of a size (H, W).

    The result also holds for other sizes, but oneDNN may then lay the weight out anew in every call.
    """
    shape = [1, weight.shape[1] * geometry[-1], *size]
    return torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *geometry, shape)


def convolution(x_BCHW: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, act: str) -> Tensor:
    """Applies a convolution with a packed weight, and an activation."""
    return torch.ops.mkldnn._convolution_pointwise(x_BCHW, packed, bias, *geometry, act, [], "")


def pack_linear(weight: Tensor) -> Tensor:
    """Packs a weight into oneDNN's layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, act: str, add: Tensor | None = None) -> Tensor:
    """Applies a linear layer with a packed weight, and either an activation or the addition of a tensor."""
    if add is None:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, act, [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, add, packed, bias, "add")


@cache
def _why_not(dtype: torch.dtype) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    make: Callable[..., Tensor] = partial(torch.linspace, -1, 1, dtype=dtype, device="cpu")
    x, weight, bias = make(200).view(1, 8, 5, 5), make(64).view(8, 8), make(8)
    kernel, geometry = weight.view(8, 8, 1, 1), ([0, 0], [1, 1], [1, 1], 1)
    try:
        with torch.inference_mode():
            packed = pack_linear(weight)
            rows = x.reshape(25, 8)
            convolved = convolution(x, pack_convolution(kernel, geometry, x.shape[2:]), bias, geometry, "relu")
            pairs = [
                (convolved, F.conv2d(x, kernel, bias).relu()),
                (linear(rows, packed, bias, "swish"), F.silu(F.linear(rows, weight, bias))),
                (linear(rows, packed, bias, "none", add=rows), F.linear(rows, weight, bias) + rows),
            ]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2, check_dtype=False)
    except (AttributeError, TypeError, RuntimeError, AssertionError) as error:
        what = str(error).partition("\n")[0]
        return f"oneDNN's operators are not those of the PyTorch that this was written for ({what})"
    return None


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why oneDNN cannot be used on the device in the dtype, or None if it can."""
    return "oneDNN is for the CPU" if device.type != "cpu" else _why_not(dtype)


#: Used only to report the backend; layers that pack their weights call the functions above directly.
CONVOLUTION = Backends(
    "packed convolution",
    F.conv2d,
    Backend("onednn", "weights laid out beforehand", convolution, None, "cpu", unavailable),
)
