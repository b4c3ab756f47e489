"""Folds every BatchNorm of a network into its neighbour: the paper's norm fusion (Table 8c)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from mobilemamba.layers.conv_norm import ConvNorm, NormLinear, folds
from mobilemamba.layers.residual import Residual
from mobilemamba.models.release_names import StateDict
from mobilemamba.models.replace import replace_layers

Model = TypeVar("Model", bound=nn.Module)


def fuse_norms(model: Model) -> Model:
    """Returns a copy for inference with all BatchNorms folded; same outputs up to rounding (1e-5), device and dtype.

    The identity of residual depthwise convolutions is folded into their kernels as well. LayerNorms stay, as they
    depend on the input; so do norms without running statistics or of other classes in a BatchNorm's place
    (SyncBatchNorm folds). The copy is in evaluation mode; train the original.

    Args:
        model: A MobileMamba, or any module built of this package's layers.
    """
    folded = copy.deepcopy(model).eval()
    replace_layers(folded, _folded)
    return folded


def _folded(layer: nn.Module) -> nn.Module | None:
    fold: Callable[[], nn.Module] = getattr(layer, "fuse", lambda: layer)
    folded = fold()
    return None if folded is layer else folded


@torch.no_grad()
def unfuse_state(model: nn.Module, folded: StateDict) -> StateDict:
    """Returns the tensors of a network with folded norms by the names of ``model``, with neutral norms.

    Each norm gets mean 0, variance 1, the weight that undoes its epsilon, and the folded bias; the identity is
    subtracted from residual depthwise kernels. Names that belong to no folded layer are kept.

    Args:
        model: The network with norms, for the places and kinds of the layers.
        folded: State dict of ``fuse_norms(model)`` or of such a release, by our names.
    """
    state = dict(folded)
    for path, module in model.named_modules():
        branch = module.branch if isinstance(module, Residual) else module
        if f"{path}.weight" not in state or not isinstance(branch, ConvNorm | NormLinear) or not folds(branch.norm):
            continue
        weight, bias = state.pop(f"{path}.weight"), state.pop(f"{path}.bias")
        inner = f"{path}.branch" if isinstance(module, Residual) else path
        if isinstance(module, Residual):
            weight = weight.clone()
            weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] -= 1
        assert isinstance(branch.norm, nn.modules.batchnorm._BatchNorm)
        gain = (1 + branch.norm.eps) ** 0.5
        if isinstance(branch, ConvNorm):
            state[f"{inner}.conv.weight"] = weight
            shift = bias
        else:
            state[f"{inner}.linear.weight"], state[f"{inner}.linear.bias"] = weight, bias
            shift = torch.zeros_like(weight[0])
        state[f"{inner}.norm.weight"] = torch.full_like(shift, gain)
        state[f"{inner}.norm.bias"] = shift
        state[f"{inner}.norm.running_mean"] = torch.zeros_like(shift)
        state[f"{inner}.norm.running_var"] = torch.ones_like(shift)
    return state


def count_batch_norms(model: nn.Module) -> int:
    """Counts the batch norms of a network that are not folded."""
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
