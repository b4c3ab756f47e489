"""Replacement of layers inside a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


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
