"""The stages and blocks of any timm model, by the names of their modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mobilemamba.errors import ConfigError

#: What stands at a finer stride is a stem.
_FINEST_STAGE = 4


def backbone_of(network: nn.Module) -> nn.Module:
    """The timm model inside, where a network is a backbone below a head."""
    inner = getattr(network, "backbone", None)
    return inner if isinstance(inner, nn.Module) and hasattr(inner, "feature_info") else network


def find_taps(network: nn.Module, taps: str | Sequence[str]) -> list[str]:
    """The names of modules whose outputs are feature maps, in the order of the network.

    Args:
        network: A timm model for "stages" and "blocks"; any module for names.
        taps: "stages", "blocks", or names of modules.

    Raises:
        ConfigError: If there are no such ones.
    """
    if not isinstance(taps, str):
        known = dict(network.named_modules())
        if unknown := [tap for tap in taps if tap not in known]:
            raise ConfigError(f"tap {unknown[0]!r}: {type(network).__name__} has no such module")
        return list(taps)
    if taps not in ("stages", "blocks"):
        raise ConfigError(f"taps {taps!r}: expected stages, blocks or a list of modules' names")
    stages = _stages(network)
    if taps == "stages":
        return [name for stride, name in stages.items() if stride >= _FINEST_STAGE] or list(stages.values())
    blocks, before = [], ""
    for stride, stage in stages.items():
        if stride >= _FINEST_STAGE:
            blocks += [block for part in _parts(network, before, stage) for block in _blocks(network, part)]
        before = stage
    return blocks


def _stages(network: nn.Module) -> dict[int, str]:
    """Stride -> the last module of that stride, which is the last of a plain transformer's blocks."""
    info: Any = getattr(network, "feature_info", None)
    if not info:
        raise ConfigError(f"{type(network).__name__} does not name its stages (feature_info); name modules as taps")
    modules = dict(network.named_modules())
    entries = list(info.get_dicts() if hasattr(info, "get_dicts") else info)
    # timm's wrappers for features write a dot as an underscore.
    names = [name if (name := entry["module"]) in modules else name.replace(".", "_") for entry in entries]
    stages = {entry["reduction"]: name for entry, name in zip(entries, names, strict=True) if name in modules}
    if not stages:
        raise ConfigError(f"{type(network).__name__} names no modules for its stages; name modules as taps")
    return stages


def _parts(network: nn.Module, before: str, stage: str) -> list[str]:
    """A stage with the modules between it and the one before, where a list holds them all, as EfficientNet's."""
    holder, _, last = stage.rpartition(".")
    siblings = [name for name, _ in network.get_submodule(holder).named_children()]
    start = siblings.index(before.rpartition(".")[2]) + 1 if before.rpartition(".")[0] == holder and before else 0
    if not isinstance(network.get_submodule(holder), nn.Sequential | nn.ModuleList):
        return [stage]
    return [f"{holder}.{name}" for name in siblings[start : siblings.index(last) + 1]]


def _blocks(network: nn.Module, stage: str) -> list[str]:
    """The members of a stage's list of modules, the longest if there are several, or the stage as a whole."""
    inner = network.get_submodule(stage)
    lists = {stage: inner} | {f"{stage}.{name}": child for name, child in inner.named_children()}
    plain = {name: child for name, child in lists.items() if type(child) in (nn.Sequential, nn.ModuleList)}
    if f"{stage}.blocks" in plain:
        plain = {f"{stage}.blocks": plain[f"{stage}.blocks"]}
    if not plain:
        return [stage]
    name = max(plain, key=lambda name: len(list(plain[name].children())))
    blocks = [f"{name}.{child}" for child, block in plain[name].named_children() if not isinstance(block, nn.Identity)]
    return blocks or [stage]
