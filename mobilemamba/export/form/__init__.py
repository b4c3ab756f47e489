"""The network in the form that other runtimes take: norms folded, every operator of ours in plain ones, few of them.

Every layer computes what the original does, up to rounding. Convolutions keep (B, C, H, W), which runtimes store in
blocks of channels; around the scan the channels come last. What would leave those blocks, such as concatenations and
transposed convolutions, is turned into convolutions and their sums.
"""

from __future__ import annotations

from timm.utils import reparameterize_model
from torch import nn

from mobilemamba.export.form.layers import replacement
from mobilemamba.export.form.operators import decompositions, without_idle_steps
from mobilemamba.models.fuse import fuse_norms

__all__ = ["decompositions", "exportable", "without_idle_steps"]


def exportable(network: nn.Module, *, any_size: bool = False) -> nn.Module:
    """A copy for inference with the same outputs up to rounding, whose operators :func:`decompositions` knows.

    Args:
        network: In evaluation mode.
        any_size: Lay the scans out for maps of any size, which ONNX alone can; see ``free``.

    Raises:
        ConfigError: If a layer beside the scans takes one size only.
    """
    copy = reparameterize_model(fuse_norms(network)).eval().requires_grad_(requires_grad=False)
    _replace_children(copy, any_size=any_size)
    return copy.requires_grad_(requires_grad=False)


def _replace_children(module: nn.Module, *, any_size: bool) -> None:
    for name, child in module.named_children():
        form = replacement(child, any_size=any_size)
        if form is None:
            _replace_children(child, any_size=any_size)
        else:
            setattr(module, name, form)
