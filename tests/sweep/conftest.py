import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilemamba.sweep import row, speed
from mobilemamba_command import main

Sweeper = Callable[..., Any]
FAKE = Path(__file__).with_name("fake_child.py")


def fake_command(run_dir: Path) -> list[str]:
    """For a row that takes no time."""
    return [sys.executable, str(FAKE), str(run_dir)]


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_ROUNDS", 2)
    monkeypatch.setattr(speed, "_BUDGET", 0.01)


@pytest.fixture
def tiny(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A configuration that trains in seconds; runs/ is in the current, empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))  # for children, where the package is not installed
    return {
        "trainer": {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"},
        "data": {"img_size": 32, "batch_size": 4},
        "model": {"arch": {"embed_dims": [16, 16, 16], "depths": [1, 1, 1]}, "warmup_epochs": 0},
        "table_size": 32,
    }


@pytest.fixture
def write(tiny: dict[str, Any], tmp_path: Path) -> Callable[..., list[str]]:
    """Writes the tiny configuration with a sweep; gives the options that use it."""

    def write_config(rows: dict[str, Any] | None = None, name: str = "table", **sweep: Any) -> list[str]:
        section = {"sweep": {"rows": rows, **sweep}} if rows is not None else {"sweep": sweep} if sweep else {}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tiny, **section}, sort_keys=False))
        return ["--config", str(path)]

    return write_config


@pytest.fixture
def sweep_faked(write: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    """Runs a sweep of rows, by default one for each name with a learning rate of its own, with fake children."""
    monkeypatch.setattr(row, "_command", fake_command)
    monkeypatch.setattr("mobilemamba.sweep.saved.plot", lambda _, __, path, ___: path.touch())  # has tests of its own

    def sweep(*names: str, options: tuple[str, ...] = (), **settings: Any) -> Any:
        rows = {name: {"model.lr": 0.001 * (index + 1)} for index, name in enumerate(names)}
        return main(["fit", *write(rows, **settings), *options])

    return sweep
