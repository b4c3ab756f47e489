import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.saved import load_sweep, write_tables

Sweeper = Callable[..., Any]
ROOT = Path("runs/table")
SETTINGS = {"paper": {"a": {"top1": 77.5}}, "notes": {"bb": "inferred"}, "paper_note": "ImageNet-1k"}


def test_the_tables_can_be_made_anew_from_a_folder_that_was_moved(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bb", "cc", options=("--sweep.only", "[a, bb]"), **SETTINGS)
    tables = {name: (ROOT / name).read_text() for name in ("results.csv", "results.md")}
    (ROOT / "results.csv").unlink()
    moved = shutil.copytree(ROOT, Path("elsewhere/table"))
    for root in (ROOT, moved):
        sweep = load_sweep(root)
        assert [entry["run"] for entry in sweep.records] == ["a", "bb"], "cc was not started"
        write_tables(root, sweep)
        assert (root / "results.md").read_text() == tables["results.md"]
    assert (ROOT / "results.csv").read_text() == tables["results.csv"]
    assert "bb [1]" in tables["results.md"]
    assert "- [1] inferred" in tables["results.md"]


def test_a_setting_that_all_rows_share_is_a_note(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bb", grid={"model.weight_decay": [0.1], "model.ema_decay": [None]})
    text = (ROOT / "results.md").read_text()
    assert "- All rows: weight_decay 0.1, ema_decay null." in text
    assert "| row | lr | FLOPs (M) |" in text
    with (ROOT / "results.csv").open() as file:
        assert {line["weight_decay"] for line in csv.DictReader(file)} == {"0.1"}


def test_a_swept_setting_wins_over_a_result_of_the_same_name(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bad", grid={"data.img_size": [48]}, options=("--sweep.only", "a,*"))
    with (ROOT / "results.csv").open() as file:
        assert [line["img_size"] for line in csv.DictReader(file)] == ["48"], "the fake row says 32"


def test_a_single_run_is_a_table_of_one_row(sweep_faked: Sweeper) -> None:
    sweep_faked("a")
    sweep = load_sweep(ROOT / "a")
    assert (sweep.title, sweep.swept, [entry["top1"] for entry in sweep.records]) == ("a", [], [81.0])


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no sweep that was started and no finished run"):
        load_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"^no such folder: .*nowhere; give that of a sweep or a run"):
        load_sweep(tmp_path / "nowhere")
