"""Builds convolutions from their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def conv2d(weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    """Builds a convolution with a given weight and bias.

    Args:
        weight: (out, in / groups, height, width).
        bias: (out,), or None.
        stride: Stride in both directions.
        padding: Padding on all four sides.
        groups: Groups of channels.
    """
    out, into, *kernel = weight.shape
    conv = nn.utils.skip_init(
        nn.Conv2d, into * groups, out, tuple(kernel), stride, padding, groups=groups, bias=bias is not None
    )
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return conv


def numbers(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the weight and bias of a convolution; zeros if it has no bias."""
    assert isinstance(conv, nn.Conv2d)
    bias = conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias
    return conv.weight.detach(), bias.detach()
