"""Replacement of layers inside a network, and of the tensors in a copy of it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def replace_layers(network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces layers of a network in place, from the outside in; the layers inside a replacement stay as they are.

    Args:
        network: The network, which itself is not replaced.
        replacement: Returns the module to put in a layer's place; None to keep the layer and look inside it.
    """
    for name, layer in network.named_children():
        other = replacement(layer)
        if other is None:
            replace_layers(layer, replacement)
        else:
            setattr(network, name, other)


def copy_with(network: Model, tensor: Callable[[Tensor], Tensor]) -> Model:
    """Returns a copy of a network that has other parameters and buffers, without copying its own.

    Args:
        network: The network, left unchanged.
        tensor: Returns what the copy has in place of a parameter or buffer.
    """
    memo: dict[int, Any] = {id(x): tensor(x) for x in (*network.parameters(), *network.buffers())}
    # A module has a dozen dicts for hooks, and deepcopy takes longer for these than for all else.
    parts = [part for module in network.modules() for part in vars(module).values()]
    memo |= {id(x): type(x)() for x in parts if type(x) in (dict, OrderedDict) and not x}
    return copy.deepcopy(network, memo)
