"""Counts of rows, of each network once: in most tables, rows differ in how they train too."""

import json

from mobilemamba.sweep import Row
from mobilemamba.sweep.network import check_and_count
from mobilemamba.sweep.settings import lookup

#: The settings that networks differ in.
NETWORK = ("name", "arch", "distillation_head", "head", "head_dim", "prune")
_COUNTED: dict[str, dict[str, float]] = {}


def counts_of(rows: list[Row]) -> dict[str, dict[str, float]]:
    """``check_and_count`` of rows, but for those whose network this process has counted before."""
    keys = {row.name: _network_of(row) for row in rows}
    new = {keys[row.name]: row for row in rows if keys[row.name] not in _COUNTED}
    counted = check_and_count([*new.values()])
    _COUNTED.update({key: counted[row.name] for key, row in new.items()})
    return {name: _COUNTED[key] for name, key in keys.items()}


def _network_of(row: Row) -> str:
    network = [lookup(row.config, f"model.{name}") for name in NETWORK]
    return json.dumps([row.config["model"]["class_path"], network, row.config["table_size"], row.fused_of is not None])
