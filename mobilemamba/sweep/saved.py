"""Files in a sweep's folder besides its runs: the plan, and the tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json, write_json, write_text_atomic
from mobilemamba.scores import Score
from mobilemamba.sweep.plot import plot, plot_receptive_fields
from mobilemamba.sweep.record import Record, record
from mobilemamba.sweep.row import Row
from mobilemamba.sweep.table import to_csv, to_sheet
from mobilemamba.text import printable
from mobilemamba.training.callbacks.receptive_fields import PICTURE_FILE
from mobilemamba.training.contract import scores_of

#: File in the sweep's folder.
PLAN_FILE = "sweep.json"


@dataclass
class SavedSweep:
    """A sweep as read from its folder.

    Attributes:
        title: The folder's name.
        swept: Settings that the rows change.
        paper_note: Conditions under which the paper's numbers were measured.
        records: Records of its rows, see :func:`mobilemamba.sweep.record.record`.
    """

    title: str
    swept: list[str]
    paper_note: str
    records: list[Record]


def save_plan(root: Path, rows: list[Row], counts: dict[str, dict[str, float]], paper_note: str) -> None:
    """Writes what :func:`load_sweep` needs to make the tables again without the YAML file.

    Raises:
        OSError: If the folder cannot be written.
    """
    saved = []
    for row in rows:
        # Without the configuration, which is in the row's folder, and the folder's path, as the folder may be moved.
        own = {key: value for key, value in asdict(row).items() if key not in ("config", "run_dir")}
        own |= {"folder": row.run_dir.name, "table_size": row.config.get("table_size"), "counts": counts[row.name]}
        saved.append(own)
    write_json(root / PLAN_FILE, {"paper_note": paper_note, "rows": saved})


def load_sweep(root: Path) -> SavedSweep:
    """Loads the sweep or the single run of a folder, with the current results of its rows.

    Args:
        root: Folder of a sweep, or of a run with ``results.json``.

    Raises:
        ConfigError: If there is no such folder, or it contains neither.
    """
    plan, single = read_json(root / PLAN_FILE), read_json(root / "results.json")
    if plan:
        rows = []
        for saved in plan["rows"]:
            folder, size, counts = (saved.pop(key) for key in ("folder", "table_size", "counts"))
            saved["scores"] = _scores(saved.get("scores"))
            row = Row(run_dir=root / folder, config={"table_size": size}, **saved)
            rows.append((row, counts))
        started = [(row, counts) for row, counts in rows if (row.run_dir / "run.yaml").exists()]
        records = [record(row, counts) for row, counts in started]
        swept = list(rows[0][0].values)
        if records:
            return SavedSweep(root.name, swept, plan["paper_note"], records)
    if single:
        measured = single.get("measured") or {}
        counts = {f"{key}_m": measured[key] / 1e6 for key in ("flops", "macs", "params") if key in measured}
        counts |= {"table_classes": measured["num_classes"]} if "num_classes" in measured else {}
        size = measured.get("img_size")
        row = Row(root.name, root, {"table_size": size}, scores=_scores(single.get("scores")))
        return SavedSweep(root.name, [], "", [record(row, counts)])
    if not root.is_dir():
        raise ConfigError(f"no such folder: {printable(root)}; give that of a sweep or a run, below runs/")
    raise ConfigError(
        f"{printable(root)} holds no sweep that was started and no finished run; give a folder that mobilemamba fit "
        "made, below runs/"
    )


def _scores(saved: list[dict[str, Any]] | None) -> tuple[Score, ...]:
    return tuple(Score(**score) for score in saved or ()) or scores_of(None)  # default: scores of an unknown module


def write_tables(root: Path, sweep: SavedSweep) -> None:
    """Writes ``results.csv``, ``results.md``, ``results.png`` and, if rows have them, ``receptive_fields.png``.

    Raises:
        OSError: If the folder cannot be written.
    """
    write_text_atomic(root / "results.csv", to_csv(sweep.records, sweep.swept))
    sheet = to_sheet(sweep.title, sweep.records, sweep.swept, sweep.paper_note)
    write_text_atomic(root / "results.md", sheet.to_markdown())
    plot(sweep.records, sweep.title, root / "results.png", sweep.paper_note)
    plot_receptive_fields(sweep.records, root / PICTURE_FILE)
