"""Networks lowered to what other runtimes know: norms folded, our operators replaced by few plain ones.

Every layer computes what the original does, up to rounding. Convolutions keep (B, C, H, W), which runtimes store in
blocks of channels; around the scan the channels come last. Operators that would leave those blocks, such as
concatenations and transposed convolutions, are turned into convolutions and their sums.
"""

from __future__ import annotations

from functools import partial

from timm.utils import reparameterize_model
from torch import nn

from mobilemamba.export.lowering.layers import replacement
from mobilemamba.export.lowering.operators import decompositions, without_idle_steps
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.models.replace import replace_layers

__all__ = ["decompositions", "exportable", "without_idle_steps"]


def exportable(network: nn.Module, *, any_size: bool = False) -> nn.Module:
    """Returns a copy for inference with the same outputs up to rounding, whose operators :func:`decompositions` knows.

    Args:
        network: The network, in evaluation mode.
        any_size: Whether the scans take maps of any size, which only ONNX can; see ``onnx_functions``.

    Raises:
        ConfigError: If a layer other than the scans takes one size only.
    """
    copy = reparameterize_model(fuse_norms(network)).eval().requires_grad_(requires_grad=False)
    replace_layers(copy, partial(replacement, any_size=any_size))
    return copy.requires_grad_(requires_grad=False)
