import csv
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json, write_json
from mobilemamba.scores import Score
from mobilemamba.sweep import Row, SweepFailedError, runner
from mobilemamba.sweep.launchers import local
from mobilemamba.sweep.launchers.base import Event
from mobilemamba.sweep.network import complete
from mobilemamba.sweep.record import record

Sweeper = Callable[..., Any]
ROOT = Path("runs/table")


def table() -> dict[str, dict[str, str]]:
    with (ROOT / "results.csv").open() as file:
        return {line["run"]: line for line in csv.DictReader(file)}


def starts(name: str) -> int:
    path = ROOT / name / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_finished_sweep_leaves_its_files_and_is_not_run_again(
    sweep_faked: Sweeper, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = {"a": {"top1": 77.5, "flops_m": 620, "throughput": 11353}}
    sweep_faked("a", "bb", paper=paper, paper_note="ImageNet-1k, L40S")
    assert capsys.readouterr().out.startswith("sweep folder: runs/table\n")
    for name in ("results.csv", "results.md", "results.png", "a/run.yaml", "a/log.txt", "a/status.json", "hparams/a"):
        assert (ROOT / name).exists(), name
    assert "sweep" not in yaml.safe_load((ROOT / "a/run.yaml").read_text())
    rows = table()
    assert [rows["a"]["top1"], rows["bb"]["top1"]] == ["81.0", "82.0"]
    assert [rows["a"]["lr"], rows["bb"]["lr"]] == ["0.001", "0.002"]
    assert float(rows["a"]["flops_m"]) > 0
    assert rows["a"]["paper_top1"] == "77.5"
    text = (ROOT / "results.md").read_text()
    assert "toys, best epoch of 2, 8,000 training and 2,000 validation pictures" in text
    assert "ImageNet-1k, L40S" in text
    left = ROOT / ".results.csv.01234567.tmp"  # by a process that was killed
    left.touch()
    sweep_faked("a", "bb", paper=paper, paper_note="ImageNet-1k, L40S")
    assert starts("a") == starts("bb") == 1
    assert len(list((ROOT / "hparams/a").iterdir())) == 1, "written anew, not once more"
    assert not left.exists()


def test_the_scores_are_those_of_the_better_network(sweep_faked: Sweeper) -> None:
    """As ``best.safetensors``, which is evaluated with folded norms, has its weights."""
    sweep_faked("a", "bb", "ccc")
    for name, averages in {
        "bb": {"top1_ema": 90.0, "top5_ema": 95.0},
        "ccc": {"top1_ema": 1.0, "top5_ema": 2.0},
    }.items():
        path = ROOT / name / "results.json"
        results = json.loads(path.read_text()) | averages
        results["measured"]["throughput"]["text"] = f"{len(name)} img/s (median of 5 rounds), batch {len(name)}, cpu"
        path.write_text(json.dumps(results))
    sweep_faked("a", "bb", "ccc")
    found = [(row["top1"], row["top5"], row["averaged"]) for row in table().values()]
    assert found == [("81.0", "99.0", "false"), ("90.0", "95.0", "true"), ("83.0", "99.0", "false")]
    text = (ROOT / "results.md").read_text()
    assert "The scores of bb are those of the averaged weights (EMA)" in text
    assert "FLOPs (the paper's convention) and Params are for 32 px" in text
    for way in ("(a): measured in an unknown way", "(b): batch 2, cpu", "(c): batch 3, cpu"):
        assert f"- img/s {way}.\n" in text
    assert "img/s with different letters were measured in different ways and do not compare." in text
    assert "| 20 (b) |" in text
    smallest = (Score("top1", "top-1", "min"),)
    assert not record(Row("bb", ROOT / "bb", {}, scores=smallest), {})["averaged"]
    assert record(Row("ccc", ROOT / "ccc", {}, scores=smallest), {})["averaged"]


def test_numbers_of_the_paper_are_of_costs_and_the_tasks_scores(sweep_faked: Sweeper) -> None:
    with pytest.raises(ConfigError, match="unknown 'miou'; expected: flops_m, params_m, throughput, top1, top5"):
        sweep_faked("a", paper={"a": {"miou": 36.0}})


def test_failing_rows_leave_the_others_finished(sweep_faked: Sweeper) -> None:
    with pytest.raises(SweepFailedError) as caught:
        sweep_faked("a", "bad", "bug", "early", "bb")
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "3 of 5 rows failed" in message
    assert "bad: data.root /nope is not a folder (see runs/table/bad/log.txt)" in message
    assert "bug: ValueError: a bug" in message
    assert "early: ended before its last epoch, exit code 0: fake row early" in message
    rows = table()
    assert [row["status"] for row in rows.values()] == ["finished", "failed", "failed", "failed", "finished"]
    assert rows["bad"]["reason"] == "data.root /nope is not a folder"
    with pytest.raises(SweepFailedError):  # after mending them: they have nothing to lose
        sweep_faked("a", "bb", "bad", "bug", "early", options=("--sweep.only", "[a, bad]"))
    assert [starts(name) for name in ("a", "bad")] == [1, 2]
    assert table()["bad"]["lr"] == str(yaml.safe_load((ROOT / "bad/run.yaml").read_text())["model"]["init_args"]["lr"])
    assert table()["bad"]["lr"] == "0.003"


def test_a_row_runs_from_its_start_and_its_failure_needs_no_file(
    sweep_faked: Sweeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process locks the folder seconds later, may be unable to write its status, or writes it at once."""

    def launch(run_dirs: list[Path], _: object) -> Iterator[Event]:
        if run_dirs:
            (ROOT / "bb/status.json").write_text('{"status": "running"}')
            yield "started", ROOT / "a", None
            yield "done", ROOT / "a", "no room"

    monkeypatch.setattr(runner, "launcher", lambda *_: launch)
    with pytest.raises(SweepFailedError, match="a: no room"):
        sweep_faked("a", "bb")
    assert "\na: running\nbb: running\na: failed: no room\nbb: stopped\n" in capsys.readouterr().out
    with pytest.raises(SweepFailedError, match="a: no room"):
        sweep_faked("a", "bb")
    assert "\nbb: running\n" not in capsys.readouterr().out, "it was stopped by the command before"


def test_retries(sweep_faked: Sweeper) -> None:
    sweep_faked("flaky", options=("--sweep.retries", "1"))
    assert starts("flaky") == 2


def test_only_runs_what_it_names_and_keeps_the_other_rows_in_the_table(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bb", "cc", options=("--sweep.only", "b*"))
    assert list(table()) == ["bb"]
    sweep_faked("a", "bb", "cc", options=("--sweep.only", "[a]"))
    assert list(table()) == ["a", "bb"]
    assert starts("cc") == 0
    with pytest.raises(ConfigError, match="fits no row"):
        sweep_faked("a", "bb", options=("--sweep.only", "x"))


def test_dry_run_prints_the_plan_and_writes_nothing(sweep_faked: Sweeper, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_faked("a", "bb", options=("--sweep.dry_run", "true"))
    assert not Path("runs").exists()
    printed = capsys.readouterr().out
    assert "waiting" in printed
    assert "2 of 2 rows" in printed


def test_changed_settings_stop_before_anything_runs(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bb")
    more = ("--trainer.max_epochs", "9")
    with pytest.raises(ConfigError, match=r"row 'a': trainer.max_epochs: 2 -> 9; .*--sweep.changed rerun"):
        sweep_faked("a", "bb", "cc", options=more)
    assert starts("cc") == 0
    sweep_faked("a", "bb", "cc", options=(*more, "--sweep.changed", "keep"))
    assert [starts(name) for name in ("a", "bb", "cc")] == [1, 1, 1]
    assert yaml.safe_load((ROOT / "a/run.yaml").read_text())["trainer"]["max_epochs"] == 2
    for name in ("a", "cc"):
        (ROOT / name / "checkpoints").mkdir()
    afresh = (*more, "--sweep.changed", "rerun", "--sweep.only", "[a, bb, cc]")
    with FileLock(ROOT / "a/.lock"), pytest.raises(ConfigError, match="'a' is still being trained with its former"):
        sweep_faked("a", "bb", "cc", options=afresh)
    assert (ROOT / "a/results.json").exists()
    sweep_faked("a", "bb", "cc", options=afresh)
    assert yaml.safe_load((ROOT / "a/run.yaml").read_text())["trainer"]["max_epochs"] == 9
    assert not (ROOT / "a/checkpoints").exists()
    assert (ROOT / "cc/checkpoints").exists(), "its settings are those it was trained with"
    assert [row["status"] for row in table().values()] == ["finished"] * 3


def test_unset_values_are_the_networks_own() -> None:
    values = {"model.arch.d_state": 4, "model.arch.depths": None, "model.lr": None}
    model = {"class_path": "mobilemamba.tasks.ClassificationTask", "init_args": {"name": "mobilemamba_b1"}}
    row = Row("a", ROOT / "a", {"model": model}, values=values)
    complete(row)
    assert row.values == {"model.arch.d_state": 4, "model.arch.depths": [2, 3, 2], "model.lr": None}


def test_a_renamed_sweep_goes_on(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "flaky", options=("--sweep.only", "a"))
    ROOT.rename("runs/other")
    sweep_faked("a", "flaky", options=("--name", "other", "--sweep.retries", "1"))
    assert Path("runs/other/a/starts").read_text().count("\n") == 1
    assert Path("runs/other/flaky/results.json").exists()
    assert not ROOT.exists()


def test_two_sweeps_do_not_share_a_folder(sweep_faked: Sweeper) -> None:
    ROOT.mkdir(parents=True)
    with FileLock(ROOT / ".lock"), pytest.raises(ConfigError, match="is being run already"):
        sweep_faked("a")


def test_jobs_share_the_cores(sweep_faked: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep_faked("a", "bb", "cc", options=("--sweep.jobs", "2"))
    assert [(ROOT / name / "starts").read_text() for name in ("a", "bb", "cc")] == ["4\n"] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "6")  # the user's share of the machine
    assert local.environments(2, {"trainer": {"accelerator": "cpu"}})[0]["OMP_NUM_THREADS"] == "3"
    assert table()["a"]["shared_device"] == "true"
    assert "(shared device)" in (ROOT / "results.md").read_text()
    status = read_json(ROOT / "a/status.json")
    status["environment"]["CUDA_VISIBLE_DEVICES"] = "0"  # a GPU is not shared
    write_json(ROOT / "a/status.json", status)
    assert not record(Row("a", ROOT / "a", {}), {})["shared_device"]


def test_each_job_gets_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")

    def gpus(jobs: int, devices: object, accelerator: str = "auto") -> list[str | None]:
        found = local.environments(jobs, {"trainer": {"devices": devices, "accelerator": accelerator}})
        return [environment.get("CUDA_VISIBLE_DEVICES") for environment in found]

    assert gpus(2, "auto") == ["3", "5"]
    assert gpus(2, 2) == ["3,5", "6,7"]
    assert gpus(1, 4) == [None], "a single job has the machine as it is"
    assert gpus(3, 1, "cpu") == [None] * 3
    with pytest.raises(ConfigError, match=r"use --sweep.jobs 2"):
        gpus(3, 2)
    with pytest.raises(ConfigError, match="give their number"):
        gpus(2, [0, 1])


def test_a_full_disk_costs_the_table_but_no_row(
    sweep_faked: Sweeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_faked("a")
    before = (ROOT / "results.csv").read_text()

    def full(path: Path, text: str) -> None:
        if path.name == "run.yaml":
            path.write_text(text)
            return
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_text_atomic", full)
        patch.setattr("mobilemamba.files.write_text_atomic", full)
        patch.setattr("mobilemamba.sweep.saved.write_text_atomic", full)
        with pytest.raises(SweepFailedError, match=r"bb: No space left on device: runs/table/bb/status.json"):
            sweep_faked("a", "bb")
    printed = capsys.readouterr().out
    assert "bb: failed: No space left on device: runs/table/bb/status.json" in printed
    assert "the table could not be written (No space left on device)" in printed
    assert (ROOT / "results.csv").read_text() == before
    sweep_faked("a", "bb")
    assert list(table()) == ["a", "bb"]


def test_tensorboard_reads_the_hparams(sweep_faked: Sweeper) -> None:
    sweep_faked("a", "bb")
    events = EventAccumulator(str(ROOT / "hparams/bb"))
    events.Reload()
    start = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert start.hparams["lr"].number_value == 0.002
    assert start.hparams["data"].string_value == "toys"
    assert events.Scalars("sweep/top1")[0].value == 82.0
    experiment = metadata.parse_experiment_plugin_data(
        events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    assert "sweep/flops_m" in [info.name.tag for info in experiment.metric_infos]


def test_the_default_architecture_shows_in_the_table(sweep_faked: Sweeper, write: Callable[..., list[str]]) -> None:
    from mobilemamba_command import main

    rows = {"a": {"model.arch.global_ratio": [0.5, 0.5, 0.5]}, "base": {"model.arch.local_ratio": [0.1, 0.1, 0.1]}}
    main(["fit", *write(rows)])
    assert table()["base"]["global_ratio"] == "0.8, 0.7, 0.6"
