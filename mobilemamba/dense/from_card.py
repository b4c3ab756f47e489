"""Builds segmenters and detectors from their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.card import ModelCard


def from_card(create: Callable[..., nn.Module], options: Mapping[str, type], card: ModelCard) -> nn.Module:
    """Builds the network of a card, freshly initialised.

    Args:
        create: Builds the network from a head, a backbone's name, a number of classes and options.
        options: The options that a card's ``head_options`` may hold, with their types.
        card: A card of the task that ``create`` is for.

    Raises:
        WeightsError: If the card has other options, or there is no such network.
    """
    for name, value in card.head_options.items():
        if name not in options:
            raise WeightsError(f"head_options has {name!r}: expected {', '.join(options)}")
        if type(value) is not options[name]:
            raise WeightsError(f"head_options has {name!r} = {value!r}: expected {options[name].__name__}")
    chosen = {"arch": card.overrides, "in_chans": card.in_chans, **card.head_options}
    try:
        return create(card.head, card.model, card.num_classes, **chosen)
    except ConfigError as error:
        raise WeightsError(f"the weights describe a network that cannot be built: {error}") from error
