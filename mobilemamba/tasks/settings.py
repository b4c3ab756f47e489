"""The arguments of a task, and their form in checkpoints."""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, ArchOverrides

#: Arguments of an ``__init__`` that a checkpoint does not need: where the weights come from, and Python's own names.
_NOT_KEPT = {"self", "__class__", "weights", "partial_weights", "new_head", "training"}


def plain_settings(given: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Returns the arguments of an ``__init__`` for a checkpoint, as plain values that ``weights_only`` can load.

    Args:
        given: All arguments with their actual values, as the command line does not record the values that it links.
        limits: Smallest and largest allowed value of each numeric argument.

    Raises:
        ConfigError: If a value is out of range.
    """
    # JSON turns tuples into lists, so that hparams.yaml is plain YAML.
    kept: dict[str, Any] = json.loads(json.dumps({key: given[key] for key in given if key not in _NOT_KEPT}))
    for name, (low, high) in limits.items():
        value = kept.get(name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ConfigError(f"{name}={value}: expected {expected}; change model.{name}")
    if not all(0 <= beta < 1 for beta in kept.get("betas", ())):
        raise ConfigError(f"betas={kept['betas']}: expected two numbers from 0 to below 1; change model.betas")
    return kept


def network_settings(
    name: str, arch: ArchOverrides | Mapping[str, Any], drop_path_rate: float | None
) -> dict[str, Any]:
    """Returns the settings of a network as a checkpoint stores them.

    Args:
        name: Name of the model.
        arch: Changes to its architecture; as a mapping if they come from a checkpoint.
        drop_path_rate: None for the value that the model was released with.
    """
    chosen = ArchOverrides(**arch) if isinstance(arch, Mapping) else arch
    if drop_path_rate is None:
        drop_path_rate = VARIANTS[name].drop_path_rate if name in VARIANTS else 0.0
    return {"arch": chosen.given(), "drop_path_rate": drop_path_rate}


def init_arguments(kind: type) -> dict[str, Any]:
    """Returns the arguments of a class with their types, including those that it passes to its base class by ``**``."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        init = vars(owner).get("__init__")
        if init is None:
            continue
        hints, parameters = typing.get_type_hints(init), inspect.signature(init).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        found |= {name: hints.get(name) for name in named}
        if len(named) + 1 == len(parameters):
            break
    return found
