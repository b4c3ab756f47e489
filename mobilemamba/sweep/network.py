"""The task and the network of a row, built to see that they can be, and counted as the paper's tables do."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.errors import ConfigError, user_error
from mobilemamba.models import fuse_norms
from mobilemamba.models.config import VARIANTS
from mobilemamba.sweep.plan import Row
from mobilemamba.sweep.settings import Config, lookup
from mobilemamba.sweep.table import paper_columns
from mobilemamba.training.contract import TaskContract, scores_of
from mobilemamba.training.provenance import TABLE_CHANNELS


def network_kwargs(config: Config) -> dict[str, Any] | None:
    """The name of a row's network and its architecture choices, as ``timm.create_model`` takes them.

    None if the row's task does not build its network from ``model.name``.
    """
    name = lookup(config, "model.name")
    if name is None:
        return None
    arch = lookup(config, "model.arch") or {}
    return {"model_name": name, **{key: value for key, value in arch.items() if value is not None}}


def check_and_count(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Builds every row's data set and task, on the meta device: no memory, no arithmetic, but every mistake shows.

    Args:
        rows: Rows that share a data set build it once. Each is counted for a square picture of its ``table_size``
            pixels; with its norms folded where it is such a row.

    Returns:
        Row name -> ``flops_m`` (the paper's convention), ``macs_m`` and ``params_m`` in millions, and
        ``table_classes``, which they are for; empty for another module than a task of ours, and where ``table_size`` is
        null.

    Raises:
        MobileMambaError: Naming the row and what is wrong with it.
    """
    counts: dict[str, dict[str, float]] = {}
    num_classes: dict[str, int] = {}
    for row in rows:
        try:
            data = json.dumps(row.config.get("data"))
            if data not in num_classes:
                num_classes[data] = _build(LightningDataModule, row.config["data"]).num_classes
            counts[row.name] = _count(build_task(row, num_classes[data]), row)
        except Exception as error:
            if found := user_error(error):
                raise type(found)(f"row {row.name!r}: {found}") from error
            raise
    return counts


def complete(row: Row) -> None:
    """Adds what the configuration alone does not tell: the task's scores, and choices that were left to the variant.

    The latter in ``values``, so that no cell is blank.

    Raises:
        ConfigError: If the sweep gives a number of the paper's that this task has not.
    """
    kind, settings = pkgutil.resolve_name(row.config["model"]["class_path"]), row.config["model"].get("init_args", {})
    is_ours = isinstance(kind, type) and issubclass(kind, TaskContract)
    row.scores = kind.scores_with(settings) if is_ours else scores_of(kind)
    if unknown := sorted(set(row.paper) - set(known := paper_columns(row.scores))):
        raise ConfigError(f"sweep.paper.{row.name}: unknown {unknown[0]!r}; expected: {', '.join(known)}")
    variant = VARIANTS.get(str(lookup(row.config, "model.name")))
    for key, value in row.values.items():
        if value is None and variant is not None and key.startswith("model.arch."):
            row.values[key] = _listed(getattr(variant.config, key.rpartition(".")[2], None))


def _build(base: type, config: Config) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part")
    return parser.instantiate(parser.parse_object({"part": config})).part


def build_task(row: Row, num_classes: int | None = None) -> Any:
    """A row's task on the meta device, without its weights.

    Args:
        row: Which.
        num_classes: In place of the task's own.
    """
    model = json.loads(json.dumps(row.config["model"]))
    arguments = model.get("init_args", {})
    arguments.update({"num_classes": num_classes} if num_classes and "num_classes" in arguments else {})
    # The weights are read by the row itself, and an average needs a real device.
    arguments.update({name: None for name in ("weights", "ema_decay") if name in arguments})
    with torch.device("meta"):
        return _build(LightningModule, model)


def table_network(task: TaskContract) -> nn.Module:
    """The network of a task with the classes and channels that a table's counts are for, on the meta device."""
    with torch.device("meta"):
        return task.build_model(num_classes=task.table_classes, in_chans=TABLE_CHANNELS)


def _count(task: Any, row: Row) -> dict[str, float]:
    img_size = row.config.get("table_size")
    if img_size is None or not isinstance(task, TaskContract):
        return {}
    network = table_network(task)
    if row.fused_of:
        parameters = sum(p.numel() for p in network.parameters())
        network = fuse_norms(network)
        if sum(p.numel() for p in network.parameters()) == parameters:
            raise ConfigError("sweep.fused: this network has no norms that can be folded; take the row out")
    found = complexity(network, img_size)
    counts = {"flops_m": found.flops / 1e6, "macs_m": found.macs / 1e6, "params_m": found.params / 1e6}
    return {**counts, "table_classes": task.table_classes}


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value
