"""The convolution in Haar's wavelet domain by the compiled CPU kernel: all three steps in one pass.

Haar's transform H is orthonormal, so the gradient of ``y = H^T W H x`` is the same operator with mirrored kernels.
Shape letters: B batch, H and W sides, C channels, k side of a kernel, F = 4 C filters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops.arguments import check, check_kernel
from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, kernel_dtype, lay_out
from mobilemamba.ops.native.structures import WaveletArgs
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_transforms


def call_wavelet(
    function: str, x: Tensor, other: Tensor | None, y: Tensor | None, weight: Tensor, relu: bool = False
) -> None:
    """Calls a function of wavelet.c; maps are (B, H, W, C) of one dtype, the weight is (4, k, k, C) float32.

    Args:
        function: Name of the function.
        x: Input maps.
        other: Maps added to the output; or the output's gradient, if ``y`` is None.
        y: Maps that the output is written to; if None, the weight's gradient is written to ``weight`` instead.
        weight: Kernels of the four sub-bands.
        relu: Whether to apply a ReLU to the output.
    """
    args = WaveletArgs(*x.shape, weight.shape[1], DTYPE_CODES[x.dtype], torch.get_num_threads(), relu)
    for name, tensor in (("x", x), ("other", other), ("y", y)):
        if tensor is not None:
            setattr(args, name, tensor.data_ptr())
            getattr(args, f"{name}_stride")[:] = tensor.stride()[:3]
    setattr(args, "grad_weight" if y is None else "weight", weight.data_ptr())
    library.call(function, args)


def by_band(weight: Tensor) -> Tensor:
    """Reorders a weight (4C, 1, k, k) over the four sub-bands of each channel for the kernel: (4, k, k, C)."""
    return weight.float().unflatten(0, (-1, 4))[:, :, 0].permute(1, 2, 3, 0).contiguous()


def from_bands(of_bands: Tensor, weight: Tensor) -> Tensor:
    """Inverts ``by_band``; the result has the weight's dtype and memory format."""
    return torch.empty_like(weight).copy_(of_bands.permute(3, 0, 1, 2).reshape(weight.shape))


def _check(x: Tensor, weight: Tensor, grad: Tensor | None = None) -> None:
    refuse_forward_mode("haar_conv")
    layout, tensors = {"x": "BHWC", "weight": "F1kk"}, [x, weight]
    if grad is not None:
        layout, tensors = layout | {"gradient": "BHWC"}, [*tensors, grad]
    sizes = check("haar_conv", layout, tensors, **{"F": 4 * x.shape[-1:].numel(), "1": 1})
    check_kernel("haar_conv", sizes["k"])


@torch.library.custom_op("mobilemamba::haar_conv", mutates_args=(), device_types="cpu")
def _haar_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    _check(x_BHWC, weight)
    x = lay_out(x_BHWC, kernel_dtype(x_BHWC.dtype))
    y = x.new_empty(x.shape)
    call_wavelet("mobilemamba_wavelet", x, None, y, by_band(weight))
    return y.to(x_BHWC.dtype)


@_haar_conv.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    _check(x, weight)
    return x.new_empty(x.shape)


@torch.library.custom_op("mobilemamba::haar_conv_weight", mutates_args=(), device_types="cpu")
def _weight_gradient(grad_BHWC: Tensor, x_BHWC: Tensor, weight: Tensor) -> Tensor:
    _check(x_BHWC, weight, grad_BHWC)
    dtype = kernel_dtype(x_BHWC.dtype)
    kernel = weight.shape[-1]
    of_bands = weight.new_empty(4, kernel, kernel, x_BHWC.shape[-1], dtype=torch.float32)
    call_wavelet("mobilemamba_wavelet_weight", lay_out(x_BHWC, dtype), lay_out(grad_BHWC, dtype), None, of_bands)
    return from_bands(of_bands, weight)


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    _check(x, weight, grad)
    return torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return _haar_conv(grad, weight.flip(2, 3)), _weight_gradient(grad, x, weight)


def _second_gradients(ctx: Any, grad_of_weight: Tensor) -> tuple[Tensor, Tensor, None]:
    """Returns the gradients of ``_weight_gradient``, which is linear in the output's gradient and in x."""
    grad, x, _ = ctx.saved_tensors
    return _haar_conv(x, grad_of_weight), _haar_conv(grad, grad_of_weight.flip(2, 3)), None


_haar_conv.register_autograd(_gradients, setup_context=_save)
_weight_gradient.register_autograd(_second_gradients, setup_context=_save)


def implement_on_cuda(convolution: Callable[..., Tensor], weight_gradient: Callable[..., Tensor]) -> None:
    """Sets the functions that compute the two operators for tensors on a GPU."""

    @_haar_conv.register_kernel("cuda")
    def _(x: Tensor, weight: Tensor) -> Tensor:
        _check(x, weight)
        return convolution(x, weight)

    @_weight_gradient.register_kernel("cuda")
    def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        _check(x, weight, grad)
        return weight_gradient(grad, x, weight)


def why_not(haar: bool) -> str | None:
    """Returns why the kernels do not support the filters, or None if they do."""
    return None if haar else "its kernel is for Haar's wavelet alone"


def unavailable(device: torch.device, dtype: torch.dtype, haar: bool = True) -> str | None:
    """Returns why the kernel cannot run on the device in the dtype, or None if it can."""
    return library.why_not_on(device, dtype) or why_not(haar)


def forward(x_BCHW: Tensor, weight: Tensor, *filters: Tensor) -> Tensor:
    """Computes the convolution; arguments as in ``wavelet_conv``, with Haar's filters."""
    refuse_transforms("wavelet_conv")
    return _haar_conv(x_BCHW.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
