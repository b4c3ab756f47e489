"""Validating and testing finished rows, and rows that are another row's network with its norms folded."""

import csv
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from mobilemamba.data import FashionMNISTSample
from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json
from mobilemamba.sweep import SweepFailedError, evaluate, runner
from mobilemamba.sweep.evaluate import SaveMetrics, evaluate_here, evaluates_here
from mobilemamba.tasks import ClassificationTask
from mobilemamba_command import main

Sweeper = Callable[..., Any]
Write = Callable[..., list[str]]
ROOT = Path("runs/table")
FOUND = {"top1": 80.0, "top5": 99.0, "loss": 0.5, "top1_fused": 79.5, "top5_fused": 98.5, "fused_changed": 3.0}


def lines(file: str) -> dict[str, dict[str, str]]:
    with (ROOT / file).open() as text:
        return {line[next(iter(line))]: line for line in csv.DictReader(text)}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for the processes that evaluate, and keeps their command lines."""
    seen: list[list[str]] = []

    def run_logged(
        command: list[str], log: Path, title: str, environment: Mapping[str, str] | None, stop: threading.Event
    ) -> str:
        seen.append(command)
        target = Path(command[command.index("--trainer.callbacks.path") + 1])
        if "broken" in str(target):
            return "ValueError: a bug"
        target.write_text(json.dumps({**FOUND, "data": "toys", "pictures": 2000, "img_size": 32}))
        return "ended"

    monkeypatch.setattr(evaluate, "run_logged", run_logged)
    monkeypatch.setattr(runner, "evaluates_here", lambda *_: False)
    return seen


def export(*names: str) -> None:
    for name in names:
        (ROOT / name / "best.safetensors").touch()


def test_validate_goes_over_the_finished_rows(
    sweep_faked: Sweeper, write: Write, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"a": {"model.lr": 0.001}, "bb": {"model.lr": 0.002}, "cc": {"model.lr": 0.003}}
    options = write(rows)
    with pytest.raises(ConfigError, match=r"no row in runs/table is finished; train with the same options"):
        main(["validate", *options])
    sweep_faked("a", "bb", "cc", options=("--sweep.only", "[a, bb]"))
    export("a", "bb")
    options = write(rows | {"bb": {"model.lr": 0.009}})  # the file has changed since the row was trained
    main(["validate", *options, "--data.batch_size", "8"])
    assert len(commands) == 2
    for name, command in zip(("a", "bb"), commands, strict=True):
        assert command[2:6] == ["mobilemamba_command", "validate", "--config", str(ROOT / name / "run.yaml")]
        assert command[6:10] == ["--data.batch_size", "8", "--model.weights", str(ROOT / name / "best.safetensors")]
        assert read_json(ROOT / name / "validate.json")["top1"] == 80.0
    assert lines("validate.csv")["bb"] == {
        "row": "bb",
        "lr": "0.002",
        "top-1 (%)": "80.00",
        "top-5 (%)": "99.00",
        "loss": "0.5000",
        "top-1 folded (%)": "79.50",
        "changed": "3",
    }
    printed = capsys.readouterr().out
    assert "1 rows are not finished and were left out" in printed
    assert "bb: evaluated as it was trained, other settings are ignored: model.lr: 0.002 -> 0.009\n" in printed
    assert "a: evaluated" not in printed
    assert "toys, 2,000 pictures, 32 px" in (ROOT / "validate.md").read_text()
    main(["test", *options])
    assert commands[-1][3] == "test"
    assert (ROOT / "a/test.json").exists()
    assert [row["status"] for row in lines("results.csv").values()] == ["finished"] * 2, "the table is as it was"


def test_a_row_that_cannot_be_evaluated_leaves_the_others(
    sweep_faked: Sweeper, write: Write, commands: list[list[str]]
) -> None:
    sweep_faked("a", "broken", "cc")
    export("a", "broken")
    (ROOT / "broken/validate.json").write_text('{"top1": 1}')
    rows = {name: {"model.lr": 0.001 * (index + 1)} for index, name in enumerate(("a", "broken", "cc"))}
    with pytest.raises(SweepFailedError, match=r"2 of 3 rows failed: broken: ValueError: a bug .*cc: no .*safetensors"):
        main(["validate", *write(rows)])
    assert list(lines("validate.csv")) == ["a"], "what an earlier command found is not taken for this one's"


def test_one_process_evaluates_the_rows_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("a", "bug", "mistake", "gone", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "run.yaml").write_text("model: {init_args: {ema_decay: 0.9}}")
        (folder / "best.safetensors").touch()
    (tmp_path / "gone/run.yaml").unlink()

    def run(args: list[str]) -> None:
        assert args[:3] == ["test", "--config", str(Path(args[2]))]
        assert args[3:5] == ["--data.batch_size", "2"]
        assert args[-2:] == ["--model.ema_decay", "null"]
        name = Path(args[2]).parent.name
        print(f"said by {name}")
        if name == "bug":
            raise KeyError("x")
        if name == "mistake":
            raise ConfigError("data.root: no such folder")
        Path(args[args.index("--trainer.callbacks.path") + 1]).write_text("{}")

    events = list(evaluate_here(folders, "test", "test.json", ["--data.batch_size", "2"], run))
    reasons = {folder.name: reason for event, folder, reason in events if event == "done"}
    assert reasons.pop("gone") == f"No such file or directory: {tmp_path / 'gone/run.yaml'}"
    assert reasons == {"a": None, "bug": "KeyError: 'x'", "mistake": "data.root: no such folder", "b": None}
    assert capsys.readouterr().out == "", "what a row says stands in its log"
    assert "said by bug\nTraceback" in (folders[1] / "log.txt").read_text()

    def stop(args: list[str]) -> None:
        raise SystemExit(1)

    with pytest.raises(KeyboardInterrupt):
        list(evaluate_here(folders, "test", "test.json", [], stop))


@pytest.mark.parametrize(
    ("launcher", "jobs", "settings", "here"),
    [
        ("local", 1, {}, True),
        ("local", 2, {}, True),
        ("local", 1, {"devices": 2}, False),
        ("local", 1, {"strategy": "ddp"}, False),
        ("slurm", 1, {}, False),
        ("local", 1, {"accelerator": "gpu", "devices": 1}, True),
        ("local", 2, {"accelerator": "gpu", "devices": 1}, False),
        ("local", 1, {"accelerator": "gpu"}, False),
    ],
)
def test_where_rows_are_evaluated(
    launcher: str, jobs: int, settings: dict[str, Any], here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = {"accelerator": "cpu", "devices": "auto", "strategy": "auto", **settings}
    assert evaluates_here(launcher, jobs, {"trainer": trainer}) == here


def test_a_fused_row_follows_its_parent(sweep_faked: Sweeper, commands: list[list[str]]) -> None:
    settings = {"fused": {"a_fused": "a"}, "paper": {"a_fused": {"flops_m": 648}}}
    with pytest.raises(SweepFailedError, match=r"1 of 3 rows failed: a_fused: no .*best.safetensors"):
        sweep_faked("a", "bb", **settings)
    export("a")
    sweep_faked("a", "bb", **settings)
    rows = lines("results.csv")
    assert [row["status"] for row in rows.values()] == ["finished"] * 3
    assert (rows["a"]["top1"], rows["a_fused"]["top1"], rows["a_fused"]["top5"]) == ("81.0", "79.5", "98.5")
    assert float(rows["a_fused"]["params_m"]) < float(rows["a"]["params_m"])
    assert float(rows["a_fused"]["flops_m"]) < float(rows["a"]["flops_m"])
    sweep_faked("a", "bb", **settings)
    assert len(commands) == 1, "an evaluation is not repeated"
    assert (ROOT / "a/starts").read_text().count("\n") == 1, "nor the training"
    assert (ROOT / "hparams/a_fused").exists()
    shutil.rmtree(ROOT)
    with pytest.raises(SweepFailedError):
        sweep_faked("a", "bb", options=("--sweep.only", "a_fused"), **settings)
    assert list(lines("results.csv")) == ["a", "a_fused"], "its parent is trained for it"


def test_a_network_without_norms_of_ours_has_no_fused_row(tiny: dict[str, Any], write: Write) -> None:
    tiny["model"] = {"name": "test_efficientnet"}
    with pytest.raises(ConfigError, match=r"row 'f': sweep.fused: this network has no norms that can be folded"):
        main(["fit", *write({"a": {"model.lr": 0.1}}, fused={"f": "a"})])
    assert not ROOT.exists()


@pytest.mark.slow
def test_a_real_sweep_its_fold_and_its_validation(write: Write) -> None:
    options = write({"a": {"model.lr": 0.01}}, fused={"fold": "a"})
    main(["fit", *options])
    table = lines("results.csv")
    assert [row["status"] for row in table.values()] == ["finished"] * 2
    assert table["a"]["top1"] == table["fold"]["top1"]
    assert int(read_json(ROOT / "a/fused.json")["pictures"]) == 4
    main(["validate", *options, "--trainer.limit_val_batches", "3"])
    found = read_json(ROOT / "a/validate.json")
    assert (found["pictures"], found["fused_changed"], found["img_size"]) == (12, 0, 32)
    assert found["top1"] == found["top1_fused"]
    assert lines("results.csv")["fold"] == table["fold"], "other pictures do not change the table"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_what_a_rows_process_writes_for_the_table(tmp_path: Path, command: str) -> None:
    data = FashionMNISTSample(img_size=32, batch_size=4, num_workers=0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
        limit_test_batches=2,
        callbacks=[SaveMetrics(str(tmp_path / "found.json"))],
    )
    (metrics,) = getattr(trainer, command)(ClassificationTask("test_resnet", num_classes=10), data, verbose=False)
    about = {"data": data.name, "pictures": 8, "img_size": 32}
    assert read_json(tmp_path / "found.json") == {key.split("/")[1]: found for key, found in metrics.items()} | about
