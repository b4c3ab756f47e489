"""Rows as SLURM jobs: the script that is submitted, and jobs run by a stand-in for SLURM's commands."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json
from mobilemamba.sweep import Sweep
from mobilemamba.sweep.launchers import launcher
from mobilemamba_command import main

pytest.importorskip("submitit", reason="needs the extra 'slurm'")
CONFIG = {"trainer": {"accelerator": "auto", "devices": "auto"}, "data": {"init_args": {"num_workers": 3}}}
OPTIONS = {"timeout_min": 90, "slurm_partition": "gpu"}


def sweep(**settings: Any) -> Sweep:
    return Sweep(**{"rows": {"a": {}}, "launcher": "slurm", "slurm": OPTIONS, **settings})


@pytest.fixture
def slurm(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's folder; its commands are found before any others."""
    import submitit
    from submitit.slurm.slurm import SlurmInfoWatcher

    home, commands = tmp_path / "slurm-stand-in", tmp_path / "bin"
    (home / "states").mkdir(parents=True)
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (commands / name).write_text(
            f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_slurm.py")} {name} "$@"\n'
        )
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setattr(submitit.SlurmJob, "watcher", SlurmInfoWatcher(delay_s=1))
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    monkeypatch.chdir(tmp_path)
    return home


def folders(*names: str) -> list[Path]:
    run_dirs = [Path("runs/table", name) for name in names]
    for run_dir in run_dirs:
        run_dir.mkdir(parents=True)
        (run_dir / "run.yaml").touch()
    return run_dirs


def never(run_dir: Path, environment: dict[str, str], stop: object) -> str:
    raise AssertionError("the stand-in holds it")


def test_the_script_asks_for_what_a_row_needs(slurm: Path) -> None:
    (slurm / "hold").touch()
    events = launcher(sweep(), CONFIG)(folders("a", "b", "c"), never)
    _, _, said = next(events)
    assert "SLURM job 4242: 3 row(s) in the queue" in str(said)
    assert "scancel 4242 ends them" in str(said)
    lines = (slurm / "4242.sh").read_text().splitlines()
    wanted = {"array": "0-2%3", "gpus-per-node": 1, "cpus-per-task": 4, "time": 90, "partition": "gpu", "nodes": 1}
    wanted |= {"ntasks-per-node": 1, "signal": "USR2@90", "job-name": "mobilemamba"}
    assert {f"#SBATCH --{key}={value}" for key, value in wanted.items()} <= set(lines)
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert f" {sys.executable} -u -m submitit.core._submit {Path.cwd() / 'runs/table/slurm'}" in command
    events.close()
    assert read_json(Path("runs/table/b/slurm.json"))["job"] == "4242_1"


@pytest.mark.parametrize(
    ("trainer", "gpus"),
    [
        ({"accelerator": "gpu", "devices": 4}, 4),
        ({"accelerator": "auto", "devices": "2"}, 2),
        ({"accelerator": "cpu"}, 0),
    ],
)
def test_gpus_follow_the_trainer(slurm: Path, trainer: dict[str, Any], gpus: int) -> None:
    (slurm / "hold").touch()
    next(launcher(sweep(), {"trainer": trainer})(folders("a"), never))
    text = (slurm / "4242.sh").read_text()
    assert (f"--gpus-per-node={gpus}\n" in text) if gpus else ("--gpus" not in text)
    assert "--cpus-per-task" not in text, "data.num_workers is not set"


def test_the_same_command_waits_for_jobs_in_the_queue_and_submits_lost_ones_again(slurm: Path) -> None:
    (slurm / "hold").touch()
    run_dirs = folders("a", "b")
    launch = launcher(sweep(), CONFIG)
    events = launch(run_dirs, never)
    next(events)
    events.close()
    (slurm / "states/4242_1").write_text("CANCELLED by 1000")
    events = launch(run_dirs, never)
    assert "a: SLURM job 4242_0 of an earlier command is waited for" in str(next(events)[2])
    assert "SLURM job 4243: 1 row(s)" in str(next(events)[2])
    assert next(events)[0] == "tick"
    (slurm / "states/4243").write_text("OUT_OF_MEMORY")
    done = next(event for event in events if event[0] == "done")
    assert done[1] == run_dirs[1]
    assert "SLURM job 4243 ended early (OUT_OF_MEMORY); see" in str(done[2])
    events.close()


def test_an_interrupted_evaluation_is_not_taken_for_another_one(slurm: Path) -> None:
    from mobilemamba.sweep.evaluate import evaluator

    (slurm / "hold").touch()
    run_dirs = folders("a")
    launch = launcher(sweep(), CONFIG)
    for fit, job in ((evaluator("validate", "x", []), 4242), (evaluator("test", "x", []), 4243)):
        assert f"SLURM job {job}: 1 row(s)" in str(next(launch(run_dirs, fit))[2])


def test_mistakes_are_said_before_anything_is_submitted(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, message in (
        ({"slurm": {}}, r"sweep.slurm has no time limit; .*timeout_min: 1440"),
        ({"slurm": {**OPTIONS, "nodes": 2}}, r"sweep.slurm: nodes is always 1"),
        ({"slurm": {**OPTIONS, "colour": "red"}}, r"sweep.slurm: .*'colour'"),
        ({"slurm": {**OPTIONS, "slurm_colour": "red"}}, r"sweep.slurm: .*'colour'"),
        ({"slurm": {"timeout_min": "long"}}, r"sweep.slurm: .*timeout_min"),
        ({"jobs": 4}, r"slurm_array_parallelism: 4 in sweep.slurm"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            launcher(sweep(**settings), CONFIG)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"trainer.num_nodes=2 with sweep.launcher=slurm"):
        launcher(sweep(), {"trainer": {"num_nodes": 2}})
    (slurm / "full").touch()
    with pytest.raises(ConfigError, match=r"sbatch refused the rows: .*invalid partition"):
        next(launcher(sweep(), CONFIG)(folders("a"), never))
    assert not list(slurm.glob("*.sh"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="srun"):
        launcher(sweep(), CONFIG)


@pytest.mark.slow
def test_a_row_whose_time_runs_out_is_queued_again_and_goes_on(slurm: Path) -> None:
    def fit(run_dir: Path, environment: dict[str, str], stop: Any) -> str | None:
        starts = run_dir / "starts"
        with starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        while len(starts.read_text().splitlines()) < 2:
            stop.wait(0.1)
        return "the second attempt"

    (run_dir,) = folders("a")
    signalled = False
    for event, _, reason in launcher(sweep(), {"trainer": {"accelerator": "cpu"}})([run_dir], fit):
        if event == "done":
            assert reason == "the second attempt"
        if (run_dir / "starts").exists() and not signalled:
            time.sleep(0.5)
            os.kill(int((run_dir / "starts").read_text()), signal.SIGUSR2)  # what SLURM does before it ends a job
            signalled = True
    assert len((run_dir / "starts").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_real_sweep(slurm: Path, write: Callable[..., list[str]]) -> None:
    rows = {"a": {"model.lr": 0.01}}
    small = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--table_size", "null")
    main(["fit", *write(rows, launcher="slurm", slurm=OPTIONS), *small])
    assert (slurm / "4242.sh").exists()
    assert read_json(Path("runs/table/a/results.json"))["epochs"] == 1
    assert read_json(Path("runs/table/a/status.json"))["attempts"] == 1
    assert Path("runs/table/results.md").read_text().count("| finished") == 1
    main(["fit", *write(rows, launcher="slurm", slurm=OPTIONS), *small])
    assert not (slurm / "4243.sh").exists(), "finished rows are not submitted"
