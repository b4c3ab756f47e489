"""MRFFI before its projection in one pass, in inference: its three parts side by side, then ReLU.

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
    """The global part plus its wavelet branch, the local part, the rest, then ReLU, by MRFFI's own steps.

    Args:
        x_BHWC: MRFFI's input.
        global_BHWG: What the state-space module makes of the first G channels.
        wavelet_weight: (4, kernel, kernel, G) of Haar's wavelet branch, kernel odd, or none; computed in float32.
        local_weights: Of each local convolution in turn its weight (kernel, kernel, c), kernel odd, bias, scale and
            shift (c,); computed in float32.

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
