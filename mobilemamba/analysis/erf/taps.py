"""Names of the modules that are the stages and blocks of a timm model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mobilemamba.errors import ConfigError

#: Smallest stride of a stage; modules with a smaller stride belong to the stem.
_FINEST_STAGE = 4


def backbone_of(network: nn.Module) -> nn.Module:
    """Returns the timm model inside a network with a head on a backbone, otherwise the network itself."""
    inner = getattr(network, "backbone", None)
    inner = getattr(inner, "model", inner)  # within timm's feature extractor, which has the same stages by other names
    return inner if isinstance(inner, nn.Module) and hasattr(inner, "feature_info") else network


def find_taps(network: nn.Module, taps: str | Sequence[str]) -> list[str]:
    """Returns the names of modules whose outputs are feature maps, in the order of the network.

    Args:
        network: A timm model for "stages" and "blocks"; any module for names.
        taps: "stages", "blocks", or names of modules.

    Raises:
        ConfigError: If there are no such modules.
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
    """Returns stride -> last module with that stride; for a plain transformer, that is its last block."""
    info: Any = getattr(network, "feature_info", None)
    if not info:
        raise ConfigError(f"{type(network).__name__} does not name its stages (feature_info); name modules as taps")
    modules = dict(network.named_modules())
    entries = list(info.get_dicts() if hasattr(info, "get_dicts") else info)
    # timm's feature wrappers replace dots by underscores.
    names = [name if (name := entry["module"]) in modules else name.replace(".", "_") for entry in entries]
    stages = {entry["reduction"]: name for entry, name in zip(entries, names, strict=True) if name in modules}
    if not stages:
        raise ConfigError(f"{type(network).__name__} names no modules for its stages; name modules as taps")
    return stages


def _parts(network: nn.Module, before: str, stage: str) -> list[str]:
    """Returns a stage and the modules between it and the previous one, if all are in one list, as in EfficientNet."""
    holder, _, last = stage.rpartition(".")
    siblings = [name for name, _ in network.get_submodule(holder).named_children()]
    start = siblings.index(before.rpartition(".")[2]) + 1 if before.rpartition(".")[0] == holder and before else 0
    if not isinstance(network.get_submodule(holder), nn.Sequential | nn.ModuleList):
        return [stage]
    return [f"{holder}.{name}" for name in siblings[start : siblings.index(last) + 1]]


def _blocks(network: nn.Module, stage: str) -> list[str]:
    """Returns the members of a stage's longest list of modules, or the stage itself if it has no list."""
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
