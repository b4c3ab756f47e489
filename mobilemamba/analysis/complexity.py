"""Counts of a network's parameters and operations, by the paper's convention and in full."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.models.replace import copy_with


@dataclass(frozen=True)
class Complexity:
    """Counts for one picture in evaluation."""

    params: int  # all parameters, including frozen ones (the paper's convention, before norms are folded)
    #: The paper's convention: a multiply-add counts 1; BatchNorm 2, LayerNorm and GroupNorm 5 per element, pooling 1
    #: per input element, the scan ``9 L D N + L D``; the depthwise convolution in the wavelet domain is not counted.
    flops: int
    macs: int  # multiply-adds of all convolutions, matrix products and scans, without exceptions


def complexity(model: nn.Module, example: int | tuple[int, int] | Tensor = 224) -> Complexity:
    """Counts parameters and operations by running a copy of the model once on the meta device.

    Args:
        model: Any network for pictures; the conventions for norms and pooling apply to its modules. Left unchanged.
        example: Side of the square picture, or (height, width), in pixels; or a batch of pictures (1, C, H, W).
    """
    shadow = copy_with(model, _without_numbers).to("meta").eval()
    counts = _count_modules(shadow)
    picture = example_pictures(shadow, example, 1).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(shadow, "busiest", shadow)(picture)  # ``busiest`` of detectors whose work depends on what they find
    macs = counter.get_total_flops() // 2
    return Complexity(
        params=sum(p.numel() for p in model.parameters()),
        flops=macs + counts["norms_and_pooling"] - counts["wavelet_convs"],
        macs=macs,
    )


def _without_numbers(x: Tensor) -> Tensor:
    return nn.Parameter(x.to("meta"), requires_grad=False) if isinstance(x, nn.Parameter) else x.to("meta")


def example_pictures(model: nn.Module, example: int | tuple[int, int] | Tensor, batch: int) -> Tensor:
    """Returns random pictures (B, C, H, W) for a network, the same each time, or the given ones.

    Args:
        model: Network whose first convolution determines the number of channels.
        example: Side of the square pictures, or (height, width), in pixels; or the pictures themselves.
        batch: Number of pictures.
    """
    if isinstance(example, Tensor):
        return example
    height, width = (example, example) if isinstance(example, int) else example
    in_chans = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.randn(batch, in_chans, height, width, generator=torch.Generator().manual_seed(0), device="cpu")


def _unchanged(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _count_modules(model: nn.Module) -> Counter[str]:
    """Returns what hooks will count as it runs: what the operator counter misses, and what the paper's missed."""
    counts = Counter[str]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.register_forward_hook(lambda m, x, y: counts.update(norms_and_pooling=2 * y.numel()))
            # Skipped, as it changes no shape, and on the meta device takes PyTorch longer than everything else.
            vars(module)["forward"] = _unchanged
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.register_forward_hook(lambda m, x, y: counts.update(norms_and_pooling=5 * y.numel()))
        elif isinstance(module, SelectAdaptivePool2d):
            module.register_forward_hook(lambda m, x, y: counts.update(norms_and_pooling=x[0].numel()))
        elif isinstance(module, WaveletConv):
            module.register_forward_hook(lambda m, x, y: counts.update(wavelet_convs=_wavelet_macs(m, y)))
    return counts


def _wavelet_macs(module: nn.Module, output: Tensor) -> int:
    """Returns the multiply-adds of the convolution of the sub-bands."""
    assert isinstance(module, WaveletConv)
    batch, _, height, width = output.shape
    return batch * -(-height // 2) * -(-width // 2) * module.conv.weight.numel()
