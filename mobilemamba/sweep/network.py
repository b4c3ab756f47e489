"""Builds the task and the network of a row, to check the row and to count FLOPs and parameters as in the paper."""

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
from mobilemamba.sweep.record import paper_columns
from mobilemamba.sweep.row import Row
from mobilemamba.sweep.settings import Config, lookup
from mobilemamba.training.contract import TaskContract, scores_of
from mobilemamba.training.provenance import TABLE_CHANNELS


def network_kwargs(config: Config) -> dict[str, Any] | None:
    """Returns the name and architecture changes of a row's network as arguments of ``timm.create_model``.

    None if the row's task does not build its network from ``model.name``.
    """
    name = lookup(config, "model.name")
    if name is None:
        return None
    arch = lookup(config, "model.arch") or {}
    return {"model_name": name, **{key: value for key, value in arch.items() if value is not None}}


def check_and_count(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Builds every row's data set and task, on the meta device: takes no memory or arithmetic, but finds mistakes.

    Args:
        rows: Rows to check; those with the same data set build it once. Each network is counted for a square picture
            of ``table_size`` pixels, with folded norms in rows of ``sweep.fused``.

    Returns:
        Row name -> ``flops_m`` (the paper's convention), ``macs_m`` and ``params_m`` in millions, and the number of
        classes they are for, ``table_classes``; empty for modules other than our tasks, and if ``table_size`` is null.

    Raises:
        MobileMambaError: If a row is wrong; names the row and its mistake.
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
    """Adds to a row what its configuration does not contain: the task's scores, and the variant's default settings.

    The defaults fill unset ``values``, so that no cell of the table is blank.

    Raises:
        ConfigError: If ``sweep.paper`` gives a number that this task does not have.
    """
    kind, settings = pkgutil.resolve_name(row.config["model"]["class_path"]), row.config["model"].get("init_args", {})
    is_ours = isinstance(kind, type) and issubclass(kind, TaskContract)
    row.scores = kind.scores_with(settings) if is_ours else scores_of(kind)
    if unknown := sorted(set(row.paper) - set(known := paper_columns(row.scores))):
        raise ConfigError(f"sweep.paper.{row.name}: unknown {unknown[0]!r}; expected: {', '.join(known)}")
    variant = VARIANTS.get(str(lookup(row.config, "model.name")))
    for key, value in row.values.items():
        if value is None and variant is not None and key.startswith("model.arch."):
            choice = getattr(variant.config, key.rpartition(".")[2], None)
            row.values[key] = json.loads(json.dumps(choice))  # as in a file, with lists for tuples


def _build(base: type, config: Config) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part")
    return parser.instantiate(parser.parse_object({"part": config})).part


def build_task(row: Row, num_classes: int | None = None) -> Any:
    """Builds a row's task on the meta device, without its weights.

    Args:
        row: The row.
        num_classes: Number of classes instead of the task's own.
    """
    model = json.loads(json.dumps(row.config["model"]))
    arguments = model.get("init_args", {})
    arguments.update({"num_classes": num_classes} if num_classes and "num_classes" in arguments else {})
    # The weights are only read when the row runs, and an average needs a real device.
    arguments.update({name: None for name in ("weights", "ema_decay") if name in arguments})
    with torch.device("meta"):
        return _build(LightningModule, model)


def table_network(task: TaskContract) -> nn.Module:
    """Builds a task's network on the meta device, with the numbers of classes and channels that tables count."""
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
