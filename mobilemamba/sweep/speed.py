"""Times the networks of a sweep against each other, in common rounds, as soon as its rows are trained.

A row measures its network too, when it starts. But rows start at different times, and what else the machine does then
changes from row to row; such numbers do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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


def uncompared(rows: Sequence[Row]) -> list[Row]:
    """Returns the finished rows whose networks can be timed against each other here, unless just these were already.

    A row's network can be if the row could time it, on a device of this machine; there must be two at least.
    """
    own = {row.name: _measured_by_itself(row) for row in rows if not row.fused_of and is_finished(row.run_dir)}
    measured = [row for row in rows if own.get(row.name)]
    if len(measured) < 2 or _device(own[row.name]["device"] for row in measured) is None:
        return []
    names = [row.name for row in measured]
    return [] if all(read_json(row.run_dir / SPEED_FILE).get("rows") == names for row in measured) else measured


def compare(rows: Sequence[Row]) -> dict[str, str]:
    """Times the rows' networks in common rounds, and writes what each reached to its folder.

    Args:
        rows: Those that :func:`uncompared` returns. Rows with the same network share its time.

    Returns:
        Row name -> the reason in one line, for networks that failed, which keep what they measured by themselves.

    Raises:
        OSError: If a folder cannot be written.
    """
    device = _device(_measured_by_itself(row)["device"] for row in rows)
    assert device is not None
    of_row = {row.name: json.dumps([row.config["model"], row.config["table_size"]], sort_keys=True) for row in rows}
    networks = {of_row[row.name]: row for row in rows}
    with usual_kernels():
        subjects = {key: _subject(row, device) for key, row in networks.items()}
        found, failed = compare_throughputs(subjects, device, _ROUNDS, _BUDGET)
    for row in rows:
        if throughput := found.get(of_row[row.name]):
            text = f"{throughput.describe()}, in rounds common to all rows"
            write_json(
                row.run_dir / SPEED_FILE, {**asdict(throughput), "text": text, "rows": [row.name for row in rows]}
            )
    return {row.name: str(failed[of_row[row.name]]) for row in rows if of_row[row.name] in failed}


def seconds(rows: Sequence[Row]) -> float:
    """Returns about how long :func:`compare` takes, by what the rows measured by themselves."""
    batches = [_measured_by_itself(row).get("latency_ms", 0) / 1000 for row in rows]
    return sum(max(_BUDGET, _ROUNDS * batch) + 2 * max(batch, 1) for batch in batches)  # the rest is for starting up


def _subject(row: Row, device: torch.device) -> Subject:
    task = build_task(row)
    with torch.random.fork_rng(devices=[]):
        network = task.build_model(num_classes=task.table_classes, in_chans=TABLE_CHANNELS)
    network, form = for_inference(network.eval(), device)
    return Subject(network, row.config["table_size"], task.table_batch, form)


def _measured_by_itself(row: Row) -> dict[str, Any]:
    measured = read_json(row.run_dir / "results.json").get("measured") or {}
    return measured.get("throughput") or {}


def _device(names: Iterable[str]) -> torch.device | None:
    """Returns the device of this machine that has all these names; None if there is none.

    The number of threads, which ends a CPU's name, does not count: rows that run side by side have fewer.
    """
    products = {name.partition(",")[0] for name in names}
    here = (choose_device("auto"), torch.device("cpu"))
    return next((device for device in here if products == {device_name(device).partition(",")[0]}), None)
