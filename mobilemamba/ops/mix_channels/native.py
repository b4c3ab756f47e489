"""The part of MRFFI before its projection by the compiled CPU kernels; channels-last, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check, check_kernel
from mobilemamba.ops.depthwise.native import RELU_AFFINE, call_depthwise
from mobilemamba.ops.native.arguments import kernel_dtype, lay_out
from mobilemamba.ops.operator import inference_operator
from mobilemamba.ops.wavelet.native import call_wavelet

_LOCAL = {"x": "BHWC", "weight": "kkc", "bias": "c", "scale": "c", "shift": "c"}


def check_arguments(x: Tensor, mixed: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]) -> None:
    """Checks the operator's arguments, on any device."""
    op = "mix_channels"
    channels = (sizes := check(op, {"x": "BHWC", "global": "BHWG"}, (x, mixed)))["G"]
    if wavelet_weight is not None:
        layout = {"x": "BHWC", "wavelet_weight": "4kkG"}
        check_kernel(op, check(op, layout, (x, wavelet_weight), **{"4": 4, "G": channels})["k"])
    for i in range(0, len(local_weights), 4):
        part = check(op, _LOCAL, (x, *local_weights[i : i + 4]))
        check_kernel(op, part["k"])
        channels += part["c"]
    if channels > sizes["C"]:
        raise ConfigError(f"{op}: the parts have {channels} channels; x has {sizes['C']}")


@inference_operator(check_arguments)
def mix_channels(
    x_BHWC: Tensor, global_BHWG: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]
) -> Tensor:
    """Computes the operator in float32 or bfloat16; arguments as in ``mobilemamba.ops.mix_channels.definition``."""
    dtype = kernel_dtype(x_BHWC.dtype)
    x, mixed = lay_out(x_BHWC, dtype), lay_out(global_BHWG, dtype)
    y = x.new_empty(x.shape)
    at = mixed.shape[-1]
    if wavelet_weight is None:
        torch.clamp_min(mixed, 0, out=y[..., :at])
    else:
        weight = wavelet_weight.float().contiguous()
        call_wavelet("mobilemamba_wavelet", x[..., :at], mixed, y[..., :at], weight, relu=True)
    for i in range(0, len(local_weights), 4):
        part = slice(at, at + local_weights[i].shape[-1])
        call_depthwise(RELU_AFFINE, x[..., part], y[..., part], *local_weights[i : i + 4])
        at = part.stop
    torch.clamp_min(x[..., at:], 0, out=y[..., at:])
    return y.to(x_BHWC.dtype)
