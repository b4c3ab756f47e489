"""Folding of norms in networks that are not ours, so that they are timed in their fastest form."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval


@torch.no_grad()
def fold_norms(network: nn.Module, pictures: Tensor) -> nn.Module:
    """Returns a copy that is re-parameterised by timm, with each batch norm folded into the preceding convolution.

    The network is run once to find the convolution whose output is a norm's input. If folding changes the outputs, as
    something else also reads a convolution's output, the copy keeps its norms.

    Args:
        network: A timm network, or one built on it, in evaluation mode; its output is a tensor or a list of tensors.
        pictures: (B, C, H, W) to run it on.
    """
    network = reparameterize_model(network)
    folded = copy.deepcopy(network)
    convs: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[str, nn.Conv2d]] = []
    kept: list[Tensor] = []  # keeps outputs alive, so that no other tensor gets the id() of a deleted one
    names = {module: name for name, module in folded.named_modules()}

    def made(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        convs[id(output)] = conv
        kept.append(output)

    def given(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in convs:
            pairs.append((names[norm], convs[id(inputs[0])]))

    hooks = [module.register_forward_hook(made) for module in names if isinstance(module, nn.Conv2d)]
    norms = (module for module in names if isinstance(module, nn.BatchNorm2d) and module.track_running_stats)
    hooks += [norm.register_forward_pre_hook(given) for norm in norms]
    folded(pictures)
    for hook in hooks:
        hook.remove()
    uses = Counter(conv for _, conv in pairs)
    for name, conv in pairs:
        norm = folded.get_submodule(name)
        if uses[conv] == 1 and isinstance(norm, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            folded.set_submodule(name, rest)
    same = zip(_answers(network(pictures)), _answers(folded(pictures)), strict=True)
    return folded if all(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in same) else network


def _answers(given: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [given] if isinstance(given, Tensor) else given
