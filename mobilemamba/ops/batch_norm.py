"""Batch normalisation in training, with a ReLU if one follows, by the compiled CPU kernel.

PyTorch's own is slow where maps are large and channels few and no multiple of eight, as in the patch embedding; and a
ReLU of its own goes over the maps once more, forwards and backwards.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, I64, POINTER


class _NormArgs(ctypes.Structure):
    """``norm_args`` of batch_norm.c."""

    _fields_ = [
        *((name, I64) for name in ("pixels", "channels", "type", "relu", "threads")),
        *((name, POINTER) for name in ("x", "y", "weight", "bias")),
        ("eps", ctypes.c_double),
        *((name, POINTER) for name in ("mean", "variance", "inverse", "partial")),
        *((name, POINTER) for name in ("grad_y", "grad_x", "grad_weight", "grad_bias")),
    ]


def _call(function: str, relu: bool, eps: float, **tensors: Tensor) -> None:
    """Calls a function of batch_norm.c with its arguments by their names there."""
    lib, x = library.library(), tensors["x"]
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    args = _NormArgs(pixels, channels, DTYPE_CODES[x.dtype], relu, torch.get_num_threads(), eps=eps)
    lib.mobilemamba_batch_norm_scratch.restype = I64
    scratch = lib.mobilemamba_batch_norm_scratch(ctypes.byref(args))
    tensors["partial"] = x.new_empty(scratch, dtype=torch.float32)
    for name, tensor in tensors.items():
        setattr(args, name, tensor.data_ptr())
    getattr(lib, function)(ctypes.byref(args))


class BatchNorm(torch.autograd.Function):
    """Normalises with the batch's own statistics; ``apply(x, weight, bias, eps, relu)`` gives (y, mean, variance).

    With ``relu``, y is the normalised x where that is above 0, else 0. x is (B, C, H, W) in dense channels-last memory,
    float32 or bfloat16, of two pixels at least, and y the same; weight and bias are (C,) float32, as are the batch's
    mean and unbiased variance, which have no gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty_like(x)
        mean, variance, inverse = weight.new_empty(3, x.shape[1]).unbind()
        of_batch = {"mean": mean, "variance": variance, "inverse": inverse}
        _call("mobilemamba_batch_norm_forward", relu, eps, x=x, y=y, weight=weight, bias=bias, **of_batch)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.relu = relu
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        inputs = dict(zip(("x", "weight", "bias", "mean", "inverse"), ctx.saved_tensors, strict=True))
        x, weight = inputs["x"], inputs["weight"]
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        grads = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        outputs = dict(zip(("grad_x", "grad_weight", "grad_bias"), grads, strict=True))
        _call("mobilemamba_batch_norm_backward", ctx.relu, 0.0, grad_y=grad_y, **inputs, **outputs)
        return *grads, None, None


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the kernel cannot run there, or None."""
    if reason := library.why_not_on(device, dtype):
        return reason
    return None if dtype in DTYPE_CODES else f"its kernel knows no {str(dtype).removeprefix('torch.')}"


def runs_on(x: Tensor) -> bool:
    """Whether the kernel takes these maps, (B, C, H, W); in a graph for a compiler it does not stand."""
    return (
        why_not(x.device, x.dtype) is None
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
    )
