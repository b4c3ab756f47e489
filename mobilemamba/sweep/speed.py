"""Times the networks of a sweep against each other, in common rounds, as soon as its rows are trained.

A row measures its network too, when it starts. But rows start at different times, and what else the machine does then
changes from row to row; such numbers do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mobilemamba.analysis.machine import choose_device, device_name
from mobilemamba.analysis.throughput import Subject, compare_throughputs
from mobilemamba.files import read_json, write_json
from mobilemamba.models import for_inference
from mobilemamba.sweep.network import build_task
from mobilemamba.sweep.record import SPEED_FILE
from mobilemamba.sweep.row import Row, is_finished
from mobilemamba.training.provenance import TABLE_CHANNELS, usual_kernels

_ROUNDS = 7
_BUDGET = 2.5  # seconds for all rounds of a network
_BEFORE = 2.0  # seconds to build a network and to warm up


def uncompared(rows: Sequence[Row]) -> list[Row]:
    """Returns the finished rows whose networks can be timed against each other here, unless just these were already.

    A row's network can be if the row could time it, on this machine's GPU or its CPU; there must be two networks.
    """
    finished = [row for row in rows if not row.fused_of and is_finished(row.run_dir)]
    products = {row.name: _product(_measured_by_itself(row).get("device", "")) for row in finished}
    for device in _devices():
        here = [row for row in finished if products[row.name] == _product(device_name(device))]
        if len(set(map(_network, here))) > 1:
            break
    else:
        return []
    names = [row.name for row in here]
    found = [read_json(row.run_dir / SPEED_FILE) for row in here]
    known = [(entry.get("rows"), entry.get("network")) for entry in found]
    return [] if known == [(names, _network(row)) for row in here] else here


def compare(rows: Sequence[Row]) -> dict[str, str]:
    """Times the rows' networks in common rounds, and writes to each row's folder what its network reached.

    Args:
        rows: Those that :func:`uncompared` returns. Rows with the same model settings, e.g. those that differ in their
            seed, share a network's time.

    Returns:
        Row name -> the reason in one line, for rows without a result, which keep what they measured by themselves.
    """
    product = _product(_measured_by_itself(rows[0])["device"])
    device = next(device for device in _devices() if _product(device_name(device)) == product)
    with usual_kernels():
        subjects = {key: _subject(row, device) for key, row in {_network(row): row for row in rows}.items()}
        found, failed = compare_throughputs(subjects, device, _ROUNDS, _BUDGET)
    reasons: dict[str, str] = {}
    for row in rows:
        key = _network(row)
        result: dict[str, Any] = {"network": key, "rows": [row.name for row in rows]}
        if key in found:
            text = f"{found[key].describe()}, in rounds common to {len(rows)} rows"
            result |= {**asdict(found[key]), "text": text}
        else:
            reasons[row.name] = in_one_line(failed[key])
        try:
            write_json(row.run_dir / SPEED_FILE, result)
        except OSError as error:
            reasons[row.name] = in_one_line(error)
    return reasons


def seconds(rows: Sequence[Row]) -> float:
    """Returns about how long :func:`compare` takes, by what the rows measured by themselves."""
    of_network = {_network(row): _measured_by_itself(row).get("latency_ms", 0) / 1000 for row in rows}
    return sum(max(_BUDGET, _ROUNDS * batch) + _BEFORE + 2 * batch for batch in of_network.values())


def in_one_line(error: Exception) -> str:
    """Returns an error's first line, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _network(row: Row) -> str:
    """Returns all that a row's network depends on, and more: settings of its training, too."""
    return json.dumps([row.config["model"], row.config.get("table_size")], sort_keys=True)


def _subject(row: Row, device: torch.device) -> Subject:
    task = build_task(row)
    with torch.random.fork_rng(devices=[]):
        network = task.build_model(num_classes=task.table_classes, in_chans=TABLE_CHANNELS)
    network, form = for_inference(network.eval(), device)
    return Subject(network, row.config["table_size"], task.table_batch, form)


def _measured_by_itself(row: Row) -> dict[str, Any]:
    measured = read_json(row.run_dir / "results.json").get("measured") or {}
    return measured.get("throughput") or {}


def _devices() -> list[torch.device]:
    return [choose_device("auto"), torch.device("cpu")]


def _product(name: str) -> str:
    """Returns a device's name without the number of threads, of which rows that run side by side have fewer."""
    return name.partition(",")[0]
