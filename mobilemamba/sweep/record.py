"""A row's record: everything that is known about it, for the tables, the plots and the live view."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobilemamba.files import read_json
from mobilemamba.scores import Score
from mobilemamba.sweep.row import Row, is_finished, is_locked
from mobilemamba.sweep.section import PAPER_COSTS

#: What is known about a row, by the names of the columns; as returned by :func:`record`.
Record = dict[str, Any]

#: Entries copied unchanged from ``results.json``.
_RESULTS = (
    *("best_epoch", "best_epoch_ema", "epochs", "hours", "peak_mem_gib", "seed", "resumes"),
    *("data", "num_classes", "img_size", "train_pictures", "val_pictures", "total_batch_size", "precision"),
    *("git", "lightning", "torch"),
)

#: File in a run's folder with the metrics of its network with folded norms; see ``Row.fused_of``.
FUSED_FILE = "fused.json"
#: File in a row's folder with its throughput, timed together with other rows', and with the names of all these rows.
SPEED_FILE = "throughput.json"


def record(row: Row, counts: dict[str, float], running: bool = False) -> Record:
    """Returns everything that is currently known about a row, read from its folder.

    Its scores are those of the network in ``best.safetensors``, which is the averaged one if ``averaged`` is true.

    Args:
        row: The row.
        counts: ``flops_m``, ``macs_m``, ``params_m``, ``table_classes``.
        running: Whether this sweep is training it now.
    """
    results, status = read_json(row.run_dir / "results.json"), read_json(row.run_dir / "status.json")
    progress = read_json(row.run_dir / "progress.json")
    if row.fused_of:
        results, status, progress = _fused_results(row, results), {}, {}
        now = "running" if running else "finished" if results else "waiting"
    else:
        now = state(row.run_dir, running)
    averaged = _average_is_better(row, results)
    measured = results.get("measured") or read_json(row.run_dir / "measure.json")
    beside_others = read_json(row.run_dir / SPEED_FILE)
    compared = "images_per_second" in beside_others  # else it failed there
    throughput = beside_others if compared else measured.get("throughput") or {}
    slot = status.get("environment", {})
    of_scores = [f"{score.key}{suffix}" for suffix in ("", "_ema") for score in row.scores]
    entry: Record = {
        "run": row.name,
        "group": row.group,
        **row.values,
        "scores": row.scores,
        "status": now,
        "reason": status.get("reason") if now == "failed" else None,
        **{key: counts.get(key) for key in ("flops_m", "macs_m", "params_m")},
        "throughput": throughput.get("images_per_second"),
        "batch": throughput.get("batch_size"),
        "device": throughput.get("device") or results.get("device"),
        # Rows that are trained on the same cores slow each other down; GPUs are not shared.
        "shared_device": not compared and "OMP_NUM_THREADS" in slot and "CUDA_VISIBLE_DEVICES" not in slot,
        "throughput_spread": throughput.get("spread"),
        "throughput_conditions": throughput.get("text"),
        **{key: results.get(key) for key in (*of_scores, *_RESULTS)},
        "averaged": averaged,
        **{score.key: results.get(f"{score.key}_ema") for score in row.scores if averaged},
        **({} if results else {"epochs": progress.get("epoch"), "resumes": progress.get("resumes")}),
        "table_size": row.config.get("table_size"),
        "table_classes": counts.get("table_classes"),
        "run_dir": str(row.run_dir),
        "note": row.note,
        "fused_of": row.fused_of,
        **{f"paper_{key}": row.paper.get(key) for key in paper_columns(row.scores)},
    }
    for key in ("flops_m", "params_m"):  # not for scores, as a sample's score and an ImageNet score do not compare
        both = entry[key] is not None and key in row.paper
        entry[f"delta_{key}"] = entry[key] - row.paper[key] if both else None
    return entry


def _fused_results(row: Row, results: Record) -> Record:
    """Returns the results of a row's network, with its scores replaced by those with folded norms."""
    found = read_json(row.run_dir / FUSED_FILE)
    keys = [score.key for score in row.scores]
    if not results or not all(f"{key}_fused" in found for key in keys):
        return {}
    fused = {key: round(found[f"{key}_fused"], 6) for key in keys}
    return {**results, **fused, **{f"{key}_ema": None for key in keys}, "best_epoch_ema": None}


def _average_is_better(row: Row, results: Record) -> bool:
    """Whether the averaged network was the better one in the best validation, as for ``best.safetensors``."""
    for headline in row.scores[:1]:
        raw, averaged = results.get(headline.key), results.get(f"{headline.key}_ema")
        if raw is not None and averaged is not None:
            return headline.is_better(averaged, raw)
    return False


def paper_columns(scores: Iterable[Score]) -> list[str]:
    """Returns the keys of the paper's numbers that a row may have: costs, and these scores."""
    return [*PAPER_COSTS, *(score.key for score in scores)]


def all_scores(records: list[Record]) -> list[Score]:
    """Returns the scores of all rows, the headline first."""
    return list(dict.fromkeys(score for entry in records for score in entry["scores"]))


def state(run_dir: Path, running: bool = False) -> str:
    """Returns the status of a row: ``finished``, ``running``, ``failed``, ``stopped`` or ``waiting``."""
    if is_finished(run_dir):
        return "finished"
    if running or is_locked(run_dir):
        return "running"
    last = read_json(run_dir / "status.json").get("status", "waiting")
    return "stopped" if last == "running" else last  # the sweep was killed before it could write "stopped"


def status_of(entry: Record) -> str:
    """Returns a row's status, with the reason if it has failed."""
    return f"{entry['status']}: {entry['reason']}" if entry["reason"] else str(entry["status"])


def conditions(entry: Record) -> str:
    """Returns how a throughput was measured, without its value and spread; blank if unknown."""
    return re.sub(r"^\S+ img/s \(median[^)]*\), ", "", entry["throughput_conditions"] or "")
