"""Every published YAML parses, and every row of it takes a training step on the sample."""

import shlex
from pathlib import Path

import pytest
import torch
import yaml

from mobilemamba.cli import main, plan
from mobilemamba.sweep import Row, select
from mobilemamba.sweep.network import check_and_count

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "experiments/data").glob("*.yaml"))
XI = ROOT / "experiments/ablation_xi.yaml"
STEP = shlex.split(
    """--trainer.max_steps 1 --trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.limit_val_batches 1
--trainer.accelerator cpu --data.img_size 32 --data.batch_size 2 --table_size null --trainer.logger false
--trainer.enable_checkpointing false --trainer.enable_model_summary false"""
)


def rows_of(path: Path, *options: str) -> list[Row]:
    return plan(["--config", str(path), *options])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_overlays_change_the_data_of_every_row(path: Path, overlay: Path, tmp_path: Path) -> None:
    rows = rows_of(path, "--config", str(overlay), "--data.root", str(tmp_path))
    assert {row.config["data"]["class_path"] for row in rows} == {"mobilemamba.data.ImageFolder"}
    assert {row.config["data"]["init_args"]["img_size"] for row in rows} == {224}
    assert {row.config["trainer"]["max_epochs"] for row in rows} == {300}
    assert {row.config["model"]["init_args"]["warmup_epochs"] for row in rows} == {20}
    # What the sample's schedule leaves out must not leak into the other data set.
    assert {row.config["data"]["init_args"]["hflip"] for row in rows} == {0.5}
    assert {row.config["model"]["init_args"]["label_smoothing"] for row in rows} == {0.1}
    assert all(row.run_dir.parent.name == f"{path.stem}-{overlay.stem}" for row in rows)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_row_takes_a_step(path: Path) -> None:
    for row in rows_of(path):
        text = Path(f"{row.name}.yaml")
        text.write_text(yaml.safe_dump(row.config))
        cli = main(["fit", "--config", str(text), *STEP])
        assert cli.trainer.global_step == 1


def test_table_a1_has_the_papers_counts() -> None:
    rows = rows_of(XI)
    counts = check_and_count(rows, 224)
    printed = select(rows, "xi_*")
    assert len(printed) == 8
    for row in printed:
        assert round(counts[row.name]["flops_m"]) == row.paper["flops_m"]
        assert round(counts[row.name]["params_m"], 1) == row.paper["params_m"]
    as_printed = counts["as_printed_xi_078_mu_A21"]
    assert (round(as_printed["flops_m"], 2), round(as_printed["params_m"], 3)) == (629.05, 15.5)


def test_the_default_run_of_table_a1_is_its_eight_rows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(XI), "--sweep.dry_run", "true"])
    printed = capsys.readouterr().out
    assert "8 of 9 rows" in printed
    assert "as_printed" not in printed
    main(["fit", "--config", str(XI), "--sweep.dry_run", "true", "--sweep.only", "as_printed*"])
    assert "as_printed_xi_078_mu_A21" in capsys.readouterr().out
