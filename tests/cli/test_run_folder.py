"""Which run a command writes to or goes on with, and that a resume that is refused leaves it as it was."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import Timeout

from mobilemamba.cli.resume import changed_settings
from mobilemamba.cli.start import free_folder, runs_named, start_from_file
from mobilemamba.sweep import PLAN_FILE
from mobilemamba_command import main
from tests.cli.runs import TINY, content, fit, logged, refusal


def test_last_takes_the_newest_unfinished_run_of_the_same_settings(run: Callable[..., Path], said: list[str]) -> None:
    finished, newer, older = run(finished=True), run("default-2"), run("default-3")
    os.utime(older / "checkpoints/last.ckpt", (1, 1))
    os.utime(older, (1, 1))
    before = content(finished) | content(older)
    assert fit("--ckpt_path last") == newer
    assert said == ["run folder: runs/default-2, going on from last.ckpt, 4 steps done"]
    assert (newer / "results.json").exists()
    assert content(finished) | content(older) == before


def test_what_leaves_the_result_as_it_is_may_change() -> None:
    """Where and on what a training runs, what it shows, and what it keeps."""
    free = shlex.split(
        "default_root_dir logger plugins profiler accelerator log_every_n_steps enable_progress_bar "
        "enable_model_summary enable_checkpointing num_sanity_val_steps detect_anomaly benchmark deterministic"
    )

    def config(value: int, lr: float = 0.1) -> dict[str, Any]:
        own = dict.fromkeys(("name", "config", "ckpt_path", "table_size"), value)
        parts = {"model": {"lr": lr, "compile": value}, "data": {"num_workers": value}}
        named = {part: {"init_args": settings} for part, settings in parts.items()}
        return {**own, **named, "trainer": dict.fromkeys(free, value)}

    assert changed_settings(config(1), config(2)) == []
    assert changed_settings(config(1), config(2, lr=0.2)) == ["model.lr: 0.1 -> 0.2"]


def test_only_the_newest_checkpoint_of_an_unfinished_run_goes_on_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "base"
    previous, last = (run / "checkpoints" / name for name in ("previous.ckpt", "last.ckpt"))
    last.parent.mkdir(parents=True)
    for path in (run / "config.yaml", previous, last):
        path.touch()
    os.utime(previous, (1, 1))
    content, settings = {"global_step": 4}, {"model": {}, "data": {}, "trainer": {}}
    monkeypatch.setattr("mobilemamba.cli.start.read_resumed", lambda _: content)
    monkeypatch.setattr("mobilemamba.cli.start.newest_readable_checkpoint", lambda _: (last, content))

    def start(path: Path) -> tuple[Path, Path | None]:
        found = start_from_file(path, run, True, settings, lambda _: settings)
        return found.folder, found.checkpoint_path

    assert start(last) == (run, last)
    assert start(previous) == (tmp_path / "base-2", previous)
    (run / "results.json").write_text('{"epochs": 2}')
    assert start(last) == (tmp_path / "base-2", last)


def test_a_sweeps_folder_is_taken_and_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert free_folder(folder) == folder
    (folder / PLAN_FILE).touch()
    (folder / "config.yaml").touch()
    assert free_folder(folder) == tmp_path / "base-2"
    assert runs_named(folder) == []


def test_a_job_that_slurm_queues_again_goes_on(
    run: Callable[..., Path], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    cli = main(["fit", *TINY])
    assert cli.trainer.default_root_dir == "runs/default"
    assert cli.config.fit.ckpt_path == "runs/default/checkpoints/last.ckpt", "which Lightning restores"
    assert fit("--model.lr 0.5") == Path("runs/default-2"), "another one of the same script has nothing to go on from"
    assert said == [
        "run folder: runs/default, going on from last.ckpt, 4 steps done",
        "run folder: runs/default-2",
    ]


def test_what_another_process_does_while_the_lock_is_waited_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(path: Path, **_: float) -> contextlib.AbstractContextManager[None]:
        shutil.copytree(trained, path.parent, dirs_exist_ok=True, ignore=shutil.ignore_patterns("results.json"))
        return contextlib.nullcontext()

    monkeypatch.setattr("mobilemamba.cli.run_folder.FileLock", begun)
    assert "another process has trained in runs/default meanwhile" in refusal("")
    assert content(Path("runs/default/checkpoints")), "nothing of the other run is removed or replaced"

    def still(path: Path, **_: float) -> None:
        (path.parent / "theirs").touch()
        raise Timeout(str(path))

    monkeypatch.setattr("mobilemamba.cli.run_folder.FileLock", still)
    assert "another process is training in runs/new" in refusal("--name new")
    assert Path("runs/new/theirs").exists()


def test_a_new_run_says_its_folder_and_what_it_leaves_unfinished(run: Callable[..., Path], said: list[str]) -> None:
    run("x")
    assert fit("--name x") == Path("runs/x-2")
    unfinished = "runs/x (epoch 2/2) is not finished, --ckpt_path last would go on with it"
    assert said == [f"run folder: runs/x-2; {unfinished}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--name nothing --ckpt_path last", "there is no run in runs/nothing; go on with runs/default-2 by --config"),
        ("--ckpt_path last --trainer.default_root_dir elsewhere", "there is no run in elsewhere"),
        ("--ckpt_path last --model.lr 0.5", "runs/default-2 (epoch 2/2) has other settings: model.lr: 0.001 -> 0.5"),
        ("--ckpt_path last --model.weight_decay 0.5", "model.weight_decay: 0.05 -> 0.5"),
        ("--ckpt_path last --model.betas [0.8,0.9]", "model.betas: [0.9, 0.999] -> [0.8, 0.9]"),
        ("--ckpt_path last --data.batch_size 8", "data.batch_size: 4 -> 8"),
        ("--ckpt_path last --trainer.max_epochs 9", "trainer.max_epochs: 2 -> 9"),
        ("--ckpt_path last --seed_everything 1", "runs/default is finished"),
        ("--ckpt_path best", "give last, or a file"),
        ("--name a --trainer.default_root_dir b", "both name the folder"),
        ("--ckpt_path runs/default/checkpoints/best.ckpt", "holds weights, not the state of a training"),
        ("--ckpt_path runs/default/best.safetensors", "holds weights, not the state of a training"),
        ("--ckpt_path runs/default/checkpoints/last.ckpt --model.lr 0.5", "would have no effect: model.lr: 0.001"),
        ("--ckpt_path runs/default-2/checkpoints/last.ckpt --data.batch_size 8", "no effect: data.batch_size: 4"),
        ("--ckpt_path alone.ckpt --model.lr 0.5", "would have no effect: model.lr: 0.001 -> 0.5"),
        ("--ckpt_path cut.ckpt", "cannot read cut.ckpt"),
    ],
)
def test_a_refused_resume_says_why_and_leaves_every_run_as_it_was(
    run: Callable[..., Path], options: str, message: str
) -> None:
    run(finished=True)
    checkpoint = run("default-2") / "checkpoints/last.ckpt"
    shutil.copy(checkpoint, "alone.ckpt")
    Path("cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    before = content(Path())
    said = refusal(options)
    assert message in said
    assert "\n" not in said
    assert content(Path()) == before


def test_a_finished_run_is_named_to_train_further_if_this_command_can(run: Callable[..., Path]) -> None:
    run(finished=True)
    remedy = "--ckpt_path runs/default/checkpoints/last.ckpt"
    assert f"train for more --trainer.max_epochs in a new run by {remedy}" in refusal("--ckpt_path last")
    assert remedy in refusal("--ckpt_path last --trainer.max_epochs 3")
    assert remedy not in refusal("--ckpt_path last --model.lr 0.5"), "it would be refused"


def test_a_run_goes_on_wherever_its_folder_is_and_whatever_its_name(run: Callable[..., Path]) -> None:
    shutil.move(run(), "moved")
    cli = main(["fit", "--config", "moved/config.yaml", "--ckpt_path", "last"])
    assert cli.trainer.default_root_dir == "moved"
    assert Path("moved/results.json").exists()
    # Its configuration serves for new runs as well, in folders of their own.
    cli = main(["fit", "--config", "moved/config.yaml", "--name", "other", "--trainer.max_epochs", "1"])
    assert cli.trainer.default_root_dir == "runs/other"
    saved = yaml.safe_load(Path("runs/other/config.yaml").read_text())
    assert (saved["name"], saved["ckpt_path"], saved["trainer"]["default_root_dir"]) == ("other", None, None)
    assert saved["model"]["init_args"]["weights"] is None, "only an evaluation takes those that the run has learned"


def test_a_checkpoints_file_goes_on_in_its_unfinished_run_and_else_starts_another(run: Callable[..., Path]) -> None:
    checkpoint = run() / "checkpoints/last.ckpt"
    assert fit(f"--ckpt_path {checkpoint}") == Path("runs/default")
    before = content(Path("runs/default"))
    assert fit(f"--ckpt_path {checkpoint} --trainer.max_epochs 3 --name longer") == Path("runs/longer")
    assert torch.load("runs/longer/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    fit("--trainer.max_epochs 3 --name straight")
    longer, straight = ([line for line in logged(name) if line["lr"]] for name in ("longer", "straight"))
    assert [line["lr"] for line in longer] == [line["lr"] for line in straight][4:]  # the schedule's length is applied
    assert content(Path("runs/default")) == before


@pytest.mark.parametrize("option", ["--ckpt_path last", "--ckpt_path runs/default/checkpoints/last.ckpt"])
def test_an_option_wins_over_a_file_wherever_it_stands(run: Callable[..., Path], option: str) -> None:
    run()
    cli = main(["fit", *option.split(), "--config", "runs/default/config.yaml"])
    assert cli.trainer.default_root_dir == "runs/default"
    assert Path("runs/default/results.json").exists()


def test_a_checkpoint_that_left_its_folder_knows_its_settings(run: Callable[..., Path]) -> None:
    shutil.move(run() / "checkpoints/last.ckpt", "alone.ckpt")
    shutil.rmtree("runs")
    for setting in ("--data.batch_size 8", "--trainer.accumulate_grad_batches 2", "--seed_everything 3"):
        assert setting.split()[0].removeprefix("--") in refusal(f"--ckpt_path alone.ckpt {setting}")


@pytest.mark.parametrize("sweep", ["", "--sweep.rows '{a: {model.lr: 0.1}}'"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    kind = "sweep" if sweep else "run"
    said = refusal(f"--trainer.default_root_dir file/below {sweep}")
    assert said == f"the {kind} folder file/below: Not a directory; choose another folder"


@pytest.mark.parametrize("name", ["..", ".", "/tmp/x", "a/../b"])
def test_a_name_that_leaves_the_runs_is_refused(name: str) -> None:
    assert "expected the name of a folder below runs/" in refusal(f"--name {name}")


def test_a_sweep_is_not_written_into_a_single_run(run: Callable[..., Path]) -> None:
    run(finished=True)
    sweep = "--sweep.rows '{a: {model.lr: 0.1}}' --sweep.dry_run true"
    assert "runs/default holds a single run already; choose another --name for the sweep" in refusal(sweep)
    main(["fit", *TINY, *shlex.split(sweep), "--name", "other"])


@pytest.mark.parametrize("mistake", ["--trainer.max_epochs -1", "--model.weights absent.pth"])  # logs exist; not yet
def test_a_refused_training_leaves_no_folder_of_its_own_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(f"--name new {mistake}")
    assert not Path("runs/new").exists()
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/notes.txt").write_text("kept")
    refusal(f"--name mine {mistake}")
    assert Path("runs/mine/notes.txt").read_text() == "kept"
