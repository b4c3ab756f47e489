"""A depthwise convolution in Haar's wavelet domain by the compiled CPU kernel: all three steps in one pass.

Haar's transform H is orthonormal, so that the gradient of ``y = H^T W H x`` is the same operator with mirrored kernels.
Shape letters: B batch, H and W sides, C channels.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, I64, POINTER, kernel_dtype, lay_out


class _WaveletArgs(ctypes.Structure):
    """``wavelet_args`` of wavelet.c."""

    _fields_ = [
        *((name, I64) for name in ("batch", "height", "width", "channels", "kernel", "type", "threads", "relu")),
        *((name, POINTER) for name in ("x", "other", "y")),
        *((name, I64 * 3) for name in ("x_stride", "other_stride", "y_stride")),
        *((name, POINTER) for name in ("weight", "grad_weight")),
    ]


@torch.compiler.assume_constant_result  # the compiler cannot trace the probe, and need not
def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel can be called; an export is to run anywhere, so it cannot there."""
    return library.why_not_on(device, dtype) is None and not torch.compiler.is_exporting()


def call_wavelet(
    function: str, x: Tensor, other: Tensor | None, y: Tensor | None, weight: Tensor, relu: bool = False
) -> None:
    """Calls a function of wavelet.c; maps are (B, H, W, C) of one dtype, the weight (4, kernel, kernel, C) float32.

    Args:
        function: Its name.
        x: Input.
        other: What is added to the output, or the output's gradient.
        y: Where the output is written, or none: then the weight's gradient is written to ``weight``.
        weight: The kernels.
        relu: Cut the output off at zero.
    """
    args = _WaveletArgs(*x.shape, weight.shape[1], DTYPE_CODES[x.dtype], torch.get_num_threads(), relu)
    for name, tensor in (("x", x), ("other", other), ("y", y)):
        if tensor is not None:
            setattr(args, name, tensor.data_ptr())
            getattr(args, f"{name}_stride")[:] = tensor.stride()[:3]
    setattr(args, "grad_weight" if y is None else "weight", weight.data_ptr())
    getattr(library.library(), function)(ctypes.byref(args))


def by_band(weight: Tensor) -> Tensor:
    """Weight of a convolution over four sub-bands a channel, (4C, 1, k, k), as the kernel takes it, (4, k, k, C)."""
    return weight.float().unflatten(0, (-1, 4))[:, :, 0].permute(1, 2, 3, 0).contiguous()


@torch.library.custom_op("mobilemamba::haar_conv", mutates_args=())
def haar_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    """``idwt2d(conv(dwt2d(x)))`` with Haar's filters.

    Args:
        x_BHWC: Maps of any size, float32 or bfloat16.
        weight: (4C, 1, kernel, kernel), kernel odd: for each channel of the sub-bands LL, HL (high along H), LH, HH.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    x = lay_out(x_BHWC, kernel_dtype(x_BHWC.dtype))
    y = x.new_empty(x.shape)
    call_wavelet("mobilemamba_wavelet", x, None, y, by_band(weight))
    return y.to(x_BHWC.dtype)


@haar_conv.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mobilemamba::haar_conv_weight", mutates_args=())
def _weight_gradient(grad_BHWC: Tensor, x_BHWC: Tensor, weight: Tensor) -> Tensor:
    dtype = kernel_dtype(x_BHWC.dtype)
    kernel = weight.shape[-1]
    of_bands = weight.new_empty(4, kernel, kernel, x_BHWC.shape[-1], dtype=torch.float32)
    call_wavelet("mobilemamba_wavelet_weight", lay_out(x_BHWC, dtype), lay_out(grad_BHWC, dtype), None, of_bands)
    return torch.empty_like(weight).copy_(of_bands.permute(3, 0, 1, 2).reshape(weight.shape))


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return haar_conv(grad, weight.flip(2, 3)), _weight_gradient(grad, x, weight)


haar_conv.register_autograd(_gradients, setup_context=_save)
