"""Batch normalisation in training by the compiled CPU kernel.

PyTorch's own batch norm is slow on large maps with few channels, if their number is no multiple of eight, as in the
patch embedding; and a separate ReLU passes over the maps once more, forwards and backwards.

Shape letters: B batch, C channels, H and W sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES
from mobilemamba.ops.native.structures import NormArgs
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_second_derivative, refuse_transforms

Pair = tuple[Tensor, Tensor]

_LAYOUT = {"x": "BCHW", "weight": "C", "bias": "C"}
_BACKWARD_LAYOUT = {"gradient": "BCHW"} | _LAYOUT | {"mean": "C", "inverse": "C"}


def _call(function: str, relu: bool, eps: float, **tensors: Tensor) -> None:
    """Calls a function of batch_norm.c; the tensors are named as its arguments are in C."""
    x = tensors["x"]
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    args = NormArgs(pixels, channels, DTYPE_CODES[x.dtype], relu, torch.get_num_threads(), eps=eps)
    scratch = library.scratch("mobilemamba_batch_norm_scratch", args)
    tensors["partial"] = x.new_empty(scratch, dtype=torch.float32)
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    library.call(function, args)


def _check(layout: dict[str, str], *tensors: Tensor) -> None:
    refuse_forward_mode("batch_norm")
    sizes = check("batch_norm", layout, tensors)
    if sizes["C"] == 0 or sizes["B"] * sizes["H"] * sizes["W"] < 2:
        shape = tuple(sizes[letter] for letter in "BCHW")
        raise ConfigError(f"batch_norm: x has shape {shape}; a variance needs two pixels of a channel at least")
    for (name, letters), x in zip(layout.items(), tensors, strict=True):
        if x.dtype != torch.float32 and (letters == "C" or x.dtype not in DTYPE_CODES):
            raise ConfigError(f"batch_norm: {name} is of {x.dtype}; expected torch.float32, or bfloat16 for the maps")


def _last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("mobilemamba::batch_norm", mutates_args=(), device_types="cpu")
def _forward(
    x_BCHW: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(_LAYOUT, x_BCHW, weight, bias)
    x = _last(x_BCHW)
    y, affine = torch.empty_like(x), {"weight": weight.contiguous(), "bias": bias.contiguous()}
    mean, variance, inverse = (weight.new_empty(x.shape[1]) for _ in range(3))
    of_batch = {"mean": mean, "variance": variance, "inverse": inverse}
    _call("mobilemamba_batch_norm_forward", relu, eps, x=x, y=y, **affine, **of_batch)
    return y, mean, variance, inverse


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(_LAYOUT, x, weight, bias)
    mean, variance, inverse = (weight.new_empty(x.shape[1]) for _ in range(3))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, variance, inverse


@torch.library.custom_op("mobilemamba::batch_norm_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_y: Tensor, x_BCHW: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    of_channels = (weight, bias, mean, inverse)
    _check(_BACKWARD_LAYOUT, grad_y, x_BCHW, *of_channels)
    x = _last(x_BCHW)
    names = ("weight", "bias", "mean", "inverse")
    inputs = dict(zip(names, (number.contiguous() for number in of_channels), strict=True))
    grads = torch.empty_like(x), weight.new_empty(x.shape[1]), weight.new_empty(x.shape[1])
    outputs = dict(zip(("grad_x", "grad_weight", "grad_bias"), grads, strict=True))
    _call("mobilemamba_batch_norm_backward", relu, 0.0, x=x, grad_y=_last(grad_y.to(x.dtype)), **inputs, **outputs)
    return grads


@_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(_BACKWARD_LAYOUT, grad_y, x, weight, bias, mean, inverse)
    of_x = torch.empty_like(x, memory_format=torch.channels_last)
    return of_x, weight.new_empty(x.shape[1]), weight.new_empty(x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.relu = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[3])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad_y, *ctx.saved_tensors, ctx.relu), None, None


_forward.register_autograd(_gradients, setup_context=_save)
_backward.register_autograd(lambda *_: refuse_second_derivative("batch_norm"))


def unavailable(device: torch.device, dtype: torch.dtype, channels_last: bool = True) -> str | None:
    """Returns why the kernel cannot run on the device in the dtype, or None if it can."""
    if reason := library.why_not_on(device, dtype):
        return reason
    if dtype not in DTYPE_CODES:
        return f"its kernel knows no {str(dtype).removeprefix('torch.')}"
    return None if channels_last else "the maps are not channels-last"


def forward(x_BCHW: Tensor, running: Pair, affine: Pair, momentum: float, eps: float, relu: bool) -> Tensor:
    """Normalises by the compiled kernel; arguments and result as in ``mobilemamba.ops.batch_norm.batch_norm``."""
    refuse_transforms("batch_norm")
    y, *of_batch, _ = _forward(x_BCHW, *affine, eps, relu)
    with torch.no_grad():
        for tracked, found in zip(running, of_batch, strict=True):
            tracked.lerp_(found, momentum)
    return y
