"""The part of MRFFI before its projection in one pass, for inference: its three parts concatenated, then ReLU.

Shape letters: B batch, H and W sides, C channels, G channels of the global mixer, c of a local convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.backends import Backends
from mobilemamba.ops.depthwise import definition as depthwise
from mobilemamba.ops.mix_channels import native, triton
from mobilemamba.ops.native import library
from mobilemamba.ops.wavelet.definition import haar_filters, wavelet_conv


def definition(
    x_BHWC: Tensor, global_BHWG: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]
) -> Tensor:
    """Concatenates the global part plus its wavelet branch, the local part and the rest, then applies ReLU.

    Args:
        x_BHWC: Input of MRFFI.
        global_BHWG: Output of the state-space module for the first G channels.
        wavelet_weight: (4, k, k, G), k odd, of the Haar wavelet branch, or None; in float32.
        local_weights: For each local convolution in turn: weight (k, k, c), k odd, and bias, scale and shift (c,); in
            float32.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    exact = torch.promote_types(x_BHWC.dtype, torch.float32)
    x, branch = x_BHWC.to(exact), global_BHWG.to(exact)
    at = branch.shape[-1]
    if wavelet_weight is not None:
        filters = haar_filters(at, x)
        weight = wavelet_weight.to(exact).permute(3, 0, 1, 2).flatten(0, 1).unsqueeze(1)
        wavelet = wavelet_conv(x[..., :at].permute(0, 3, 1, 2), weight, filters, filters)
        branch = branch + wavelet.permute(0, 2, 3, 1)
    parts = [branch]
    for i in range(0, len(local_weights), 4):
        weight, bias, scale, shift = (number.to(exact) for number in local_weights[i : i + 4])
        parts.append(depthwise(x[..., at : at + len(bias)], weight, bias, "relu") * scale + shift)
        at += len(bias)
    return F.relu(torch.cat([*parts, x[..., at:]], -1)).to(x_BHWC.dtype)


mix_channels = Backends("mix channels", definition, library.backend(native.mix_channels), triton.BACKEND)
