"""The part of MRFFI before its projection by Triton kernels, one for each channel slice; without gradients."""

from __future__ import annotations

from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.depthwise import triton as depthwise
from mobilemamba.ops.depthwise.native import RELU_AFFINE
from mobilemamba.ops.mix_channels import native
from mobilemamba.ops.operator import implement_on_cuda
from mobilemamba.ops.wavelet import triton as wavelet


def mix_channels(
    x_BHWC: Tensor, global_BHWG: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]
) -> Tensor:
    """Computes the operator on a GPU; arguments and result as in ``mobilemamba.ops.mix_channels.definition``."""
    y, at = x_BHWC.new_empty(x_BHWC.shape), global_BHWG.shape[-1]
    if wavelet_weight is None:
        y[..., :at].copy_(global_BHWG.clamp_min(0))
    else:
        weight = wavelet_weight.float().contiguous()
        wavelet.convolve(x_BHWC[..., :at], weight, y[..., :at], global_BHWG, relu=True)
    for i in range(0, len(local_weights), 4):
        part = slice(at, at + local_weights[i].shape[-1])
        depthwise.convolve(RELU_AFFINE, x_BHWC[..., part], y[..., part], *local_weights[i : i + 4])
        at = part.stop
    if at < x_BHWC.shape[-1]:
        y[..., at:].copy_(x_BHWC[..., at:].clamp_min(0))
    return y


implement_on_cuda("mix_channels", native.check_arguments, mix_channels)

BACKEND = jit.backend(native.mix_channels)  # the same operator serves all devices
