"""Norm fusion: the same network with every BatchNorm folded into its neighbour (Table 8c of the paper)."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def fuse_norms(model: Model) -> Model:
    """A copy for inference with all BatchNorms folded; same outputs up to rounding (1e-5), same device and dtype.

    Residual depthwise convolutions take the identity into their kernel as well. LayerNorms stay, as they depend on the
    input. The copy is in evaluation mode; train the original.

    Args:
        model: A MobileMamba, or any module built of this package's layers.
    """
    fused = copy.deepcopy(model).eval()
    _fuse_children(fused)
    return fused


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fuse = getattr(child, "fuse", None)
        replacement = fuse() if fuse is not None else child
        if replacement is not child:
            setattr(module, name, replacement)
        else:
            _fuse_children(child)
