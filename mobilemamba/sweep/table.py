"""The table of a sweep: one record a row, as CSV with everything and as Markdown with what the paper shows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from mobilemamba.sweep.config import PAPER_COLUMNS
from mobilemamba.sweep.plan import Row
from mobilemamba.sweep.row import is_finished, is_locked, read_json

Record = dict[str, Any]

#: Taken from ``results.json`` as they are.
_RESULTS = (
    *("top1", "top5", "best_epoch", "top1_ema", "best_epoch_ema", "epochs", "hours", "peak_mem_gib", "seed", "resumes"),
    *("data", "num_classes", "img_size", "train_pictures", "val_pictures", "total_batch_size", "precision"),
    *("git", "lightning", "torch"),
)


#: Share by which the rounds of a throughput may differ before the table says so: something else was running.
BUSY_SPREAD = 0.1


def record(row: Row, counts: dict[str, float], running: bool = False) -> Record:
    """Everything known about a row at this moment, from its folder.

    Args:
        row: Where to look.
        counts: ``flops_m``, ``macs_m``, ``params_m``.
        running: Whether this sweep is training it now.
    """
    results, status = read_json(row.run_dir / "results.json"), read_json(row.run_dir / "status.json")
    progress = read_json(row.run_dir / "progress.json")
    measured = results.get("measured") or read_json(row.run_dir / "measure.json")
    throughput = measured.get("throughput") or {}
    slot = status.get("environment", {})
    entry: Record = {"run": row.name, **{key: row.values[key] for key in row.values}}
    entry["status"] = state(row.run_dir, running)
    entry["reason"] = status.get("reason") if entry["status"] in ("failed", "stopped") else None
    entry |= {key: counts.get(key) for key in ("flops_m", "macs_m", "params_m")}
    entry |= {
        "throughput": throughput.get("images_per_second"),
        "batch": throughput.get("batch_size"),
        "device": throughput.get("device") or results.get("device"),
        # Several rows on the same cores slow each other down; each has its GPU to itself.
        "shared_device": "OMP_NUM_THREADS" in slot and "CUDA_VISIBLE_DEVICES" not in slot,
        "throughput_spread": throughput.get("spread"),
        "throughput_conditions": throughput.get("text"),
    }
    entry |= {key: results.get(key) for key in _RESULTS}
    if not results:
        entry |= {"epochs": progress.get("epoch"), "resumes": progress.get("resumes")}
    entry |= {"run_dir": str(row.run_dir)}
    entry |= {f"paper_{key}": row.paper.get(key) for key in PAPER_COLUMNS}
    for key in ("flops_m", "params_m"):  # not top-1: a sample's score and an ImageNet score have no difference
        both = entry[key] is not None and key in row.paper
        entry[f"delta_{key}"] = entry[key] - row.paper[key] if both else None
    return entry


def state(run_dir: Path, running: bool = False) -> str:
    """``finished``, ``running``, ``failed``, ``stopped`` or ``waiting``."""
    if is_finished(run_dir):
        return "finished"
    if running or is_locked(run_dir):
        return "running"
    last = read_json(run_dir / "status.json").get("status", "waiting")
    return "stopped" if last == "running" else last  # its sweep was killed before it could say so


def labels(keys: list[str]) -> dict[str, str]:
    """The shortest unambiguous name of each swept setting: ``model.arch.d_state`` -> ``d_state``."""
    short = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def cell(value: Any, digits: int | None = None) -> str:
    """A value as a table shows it; blank where it is unknown."""
    if value is None:
        return ""
    if digits is not None and isinstance(value, int | float):
        return f"{value:,.{digits}f}"
    if isinstance(value, list | tuple):
        return ", ".join(f"({cell(item)})" if isinstance(item, list | tuple) else cell(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def to_csv(records: list[Record], swept: list[str]) -> str:
    """All columns of all rows."""
    names = labels(swept)
    rows = [{names.get(key, key): cell(value) for key, value in entry.items()} for entry in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(title: str, records: list[Record], swept: list[str], table_size: int | None, paper_note: str) -> str:
    """The paper's columns, with what the numbers were measured on."""
    names = labels(swept)
    paper = [key for key in PAPER_COLUMNS if any(entry[f"paper_{key}"] is not None for entry in records)]
    heads = {"flops_m": "FLOPs (M)", "params_m": "Params (M)", "throughput": "img/s", "top1": "top-1", "top5": "top-5"}
    header = ["row", *names.values(), "FLOPs (M)", "Params (M)", "img/s", "top-1 (%)", "top-5 (%)", "epochs"]
    header += [f"paper {heads[key]}" for key in paper] + ["status"]
    lines = []
    for entry in records:
        cells = [entry["run"], *(cell(entry[key]) for key in swept)]
        cells += [cell(entry["flops_m"], 1), cell(entry["params_m"], 2), cell(entry["throughput"], 0)]
        cells[-1] += _doubts(entry)
        cells += [cell(entry["top1"], 2), cell(entry["top5"], 2), cell(entry["epochs"])]
        cells += ["" if (value := entry[f"paper_{key}"]) is None else f"{value:,.6g}" for key in paper]
        cells.append(f"{entry['status']}: {entry['reason']}" if entry["reason"] else entry["status"])
        lines.append([text.replace("|", "\\|").replace("\n", " ") for text in cells])
    notes = describe(records)
    if table_size:
        notes.append(f"FLOPs (the paper's convention) and Params are for {table_size} px and 1000 classes.")
    notes += [f"img/s: {text}." for text in conditions(records)]
    if paper:
        notes.append(f"Columns headed *paper*: {paper_note}. They do not compare with scores on other data.")
    table = [header, ["---"] * len(header), *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in table)
    bullets = "\n".join(f"- {note}" for note in notes)
    return f"# {title}\n\n{body}\n\n{bullets}\n"


def _doubts(entry: Record) -> str:
    """Why a throughput is not to be compared; blank if it is."""
    if entry["throughput"] is None:
        return ""
    spread = entry["throughput_spread"] or 0
    doubts = ["shared device"] * entry["shared_device"] + [f"spread {spread:.0%}"] * (spread > BUSY_SPREAD)
    return f" ({', '.join(doubts)})" if doubts else ""


def describe(records: list[Record]) -> list[str]:
    """What the accuracies were measured on: a line for each data set and schedule in the table."""
    lines = (
        f"top-1 and top-5: {entry['data']}, best epoch of {entry['epochs']}, {cell(entry['train_pictures'], 0)} "
        f"training and {cell(entry['val_pictures'], 0)} validation pictures, {cell(entry['img_size'])} px, "
        f"seed {entry['seed']}."
        for entry in records
        if entry["top1"] is not None
    )
    return list(dict.fromkeys(lines))


def conditions(records: list[Record]) -> list[str]:
    """How the throughputs were measured, each way once."""
    found = (entry["throughput_conditions"] for entry in records if entry["throughput_conditions"])
    return list(dict.fromkeys(text.partition("), ")[2] or text for text in found))
