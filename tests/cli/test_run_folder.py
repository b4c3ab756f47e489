"""Which run a command writes to or goes on with, and that a resume that is refused leaves it as it was."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import Timeout
from lightning.pytorch import LightningModule
from torch.utils._pytree import tree_leaves

from mobilemamba.cli.resume import changed_settings, check_data, check_fits, newest_readable_checkpoint
from mobilemamba.cli.start import free_folder, runs_named, start_from_file
from mobilemamba.data import DataModule, FashionMNISTSample
from mobilemamba.errors import ConfigError, MobileMambaError, WeightsError
from mobilemamba.sweep import PLAN_FILE
from mobilemamba.training.callbacks.checkpoint_io import AtomicCheckpointIO
from mobilemamba.training.contract import TaskContract
from mobilemamba_command import main

TINY = shlex.split(
    "--trainer.max_epochs 2 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.log_every_n_steps 1 "
    "--data.img_size 32 --data.batch_size 4 --data.num_workers 0 --model.warmup_epochs 0 "
    "--model.arch.embed_dims [16,16,16] --model.arch.depths [1,1,1] --table_size null"
)


def fit(options: str = "") -> Path:
    """Trains, and gives the run's folder."""
    return Path(main(["fit", *TINY, *shlex.split(options)]).trainer.default_root_dir)


def refusal(options: str, *, tiny: bool = True) -> str:
    with pytest.raises(MobileMambaError) as caught:
        main(["fit", *TINY * tiny, *shlex.split(options)])
    return str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def logged(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"runs/{name}/csv/version_0/metrics.csv").open()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in ``runs/default`` of an empty folder."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    fit()
    os.chdir(here)
    torch.use_deterministic_algorithms(False)
    return folder / "runs/default"


@pytest.fixture
def run(trained: Path) -> Callable[..., Path]:
    """Puts such a run into a folder, by default one that was killed after its last checkpoint."""

    def put(name: str = "default", *, finished: bool = False) -> Path:
        folder = Path("runs", name)
        shutil.copytree(trained, folder)
        if not finished:
            (folder / "results.json").unlink()
        return folder

    return put


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the command line itself."""
    lines: list[str] = []
    monkeypatch.setattr("mobilemamba.cli.lightning_cli.rank_zero_info", lines.append)
    return lines


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


@pytest.mark.parametrize(("finder", "batch_size"), [("LearningRateFinder", 4), ("BatchSizeFinder", 2)])
def test_what_lightning_has_found_is_not_searched_again(run: Callable[..., Path], finder: str, batch_size: int) -> None:
    """It would forget the optimiser and the steps done, and train all epochs once more."""
    last = run() / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["pictures_per_step"] = 2
    torch.save(checkpoint, last)
    cli = main(["fit", *TINY, "--ckpt_path", "last", f"--trainer.callbacks+={finder}"])
    assert finder not in [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert cli.datamodule.batch_size == batch_size


def test_a_broken_checkpoint_falls_back_to_the_one_before_it(run: Callable[..., Path]) -> None:
    last = run() / "checkpoints/last.ckpt"
    previous = last.with_name("previous.ckpt")
    shutil.copy(last, previous)
    os.utime(previous, (1, 1))
    whole = last.read_bytes()
    for broken in (whole[:5000], whole[: len(whole) // 2] + bytes(9000) + whole[len(whole) // 2 + 9000 :]):
        last.write_bytes(broken)
        with pytest.warns(match=r"cannot read .*last.ckpt.*going on from the checkpoint before it, .*previous.ckpt"):
            path, checkpoint = newest_readable_checkpoint(Path("runs/default"))
        assert (path, checkpoint["global_step"]) == (previous, 4)
    previous.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"no checkpoint in runs/default can be read: .*; repair one, or"):
        newest_readable_checkpoint(Path("runs/default"))


def test_a_training_that_ended_within_an_epoch_goes_on_there(run: Callable[..., Path]) -> None:
    # Whatever the number of steps is, the first of them has the full rate.
    length = "--trainer.logger false --trainer.limit_val_batches 0 --trainer.max_epochs -1 --trainer.max_steps"
    fit(f"--name straight {length} 5")
    fit(f"--name part {length} 1")
    fit(f"--name whole {length} 5 --ckpt_path runs/part/checkpoints/last.ckpt")
    whole, straight = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "straight")
    )
    for part in ("state_dict", "optimizer_states", "loops", "epoch"):
        left, right = tree_leaves(whole[part]), tree_leaves(straight[part])
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(left, right, strict=True)), part
    results = [json.loads(Path(f"runs/{name}/results.json").read_text()) for name in ("part", "whole", "straight")]
    assert [found["epochs"] for found in results] == [1, 3, 3]


class Own:
    """No plain value."""


def test_a_state_of_one_s_own_type_is_warned_of_when_saved_and_named_when_refused(run: Callable[..., Path]) -> None:
    last = run("x") / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["Mine"] = Own()
    last.with_name("previous.ckpt").unlink(missing_ok=True)
    said = r"last.ckpt holds objects of tests.cli.test_run_folder.Own, which no resume reads, .* allow the type"
    with pytest.warns(UserWarning, match=said):
        AtomicCheckpointIO().save_checkpoint(state, last)
    assert re.search(said, refusal("--name x --ckpt_path last"))
    assert re.search(said, refusal(f"--name y --ckpt_path {last}"))


def test_a_checkpoint_that_a_callback_wrote_elsewhere_is_named(run: Callable[..., Path]) -> None:
    elsewhere = Path("elsewhere")
    elsewhere.mkdir()
    shutil.move(run("x") / "checkpoints/last.ckpt", elsewhere / "own.ckpt")
    shutil.rmtree("runs/x/checkpoints")
    own = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath elsewhere"
    said = refusal(f"--name x --ckpt_path last {own}")
    assert "was stopped before its first checkpoint; " in said
    assert "elsewhere/own.ckpt has 4 steps done: give it by --ckpt_path" in said


class Other(TaskContract, LightningModule):
    def __init__(self, width: int = 2, groups: int = 1) -> None:
        super().__init__()
        self.layer, self.groups = torch.nn.Linear(2, width), groups

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": [p]} for p in self.parameters()][: self.groups]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Other(3), r"layer.weight is of shape \[2, 2\] there and of shape \[3, 2\] here"),
        (torch.nn.Module(), "layer.weight is of shape .* there and absent here"),
        (Other(groups=2), r"other parameter groups: \[1\] parameters there, \[1, 1\] here"),
    ],
)
def test_the_checkpoint_of_another_network_or_optimiser_is_refused(module: torch.nn.Module, message: str) -> None:
    if not isinstance(module, LightningModule):
        module = LightningModule()
    groups = [{"params": [0]}]
    checkpoint = {"state_dict": Other().state_dict(), "optimizer_states": [{"param_groups": groups}]}
    check_fits(Path("x.ckpt"), checkpoint, Other())
    with pytest.raises(ConfigError, match=message):
        check_fits(Path("x.ckpt"), checkpoint, module)


def test_a_training_does_not_go_on_with_other_classes(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = content(Path())
    first, second, *others = FashionMNISTSample.class_names
    monkeypatch.setattr(FashionMNISTSample, "class_names", (second, first, *others))
    for option in ("last", "runs/default/checkpoints/last.ckpt"):
        said = refusal(f"--ckpt_path {option}")
        assert f"was trained on other classes: {first!r} where the data have {second!r}; give the data of its" in said
    assert content(Path()) == before


def test_the_data_of_a_module_without_a_card_need_no_names() -> None:
    check_data("x.ckpt", {}, DataModule())


def test_a_training_that_goes_on_with_other_pictures_says_so(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(FashionMNISTSample, "name", "another sample")
    with pytest.warns(
        UserWarning, match=r"was trained on Fashion-MNIST sample \(8,000/2,000\) and goes on with another"
    ):
        fit("--ckpt_path last")


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


def test_callbacks_that_keep_a_state_are_not_changed_in_silence(run: Callable[..., Path]) -> None:
    stopping = (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/top1 --trainer.callbacks.mode max "
        "--trainer.callbacks.patience"
    )
    fit(f"--name stops {stopping} 5")
    Path("runs/stops/results.json").unlink()
    said = refusal(f"--name stops --ckpt_path last {stopping} 7")
    assert "has other settings: trainer.callbacks.EarlyStopping.patience: 5 -> 7" in said


def test_a_fine_tuning_goes_on_without_the_weights_that_it_began_with(run: Callable[..., Path]) -> None:
    weights = Path(shutil.copy(run(finished=True) / "best.safetensors", "w.safetensors"))
    fit("--name tuned --weights w.safetensors")
    Path("runs/tuned/results.json").unlink()
    weights.unlink()
    assert fit("--name tuned --weights w.safetensors --ckpt_path last") == Path("runs/tuned")
    assert yaml.safe_load(Path("runs/tuned/config.yaml").read_text())["model"]["init_args"]["weights"] == str(weights)
    assert main(["validate", "--config", "runs/tuned/config.yaml"]), "its own weights are there"


@pytest.mark.parametrize("sweep", ["", "--sweep.rows '{a: {model.lr: 0.1}}'"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    kind = "sweep" if sweep else "run"
    said = refusal(f"--trainer.default_root_dir file/below {sweep}")
    assert said == f"the {kind} folder file/below: Not a directory; choose another folder"


def test_moments_of_another_shape_are_refused() -> None:
    module = Other()
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}
    optimizer = {"param_groups": [{"params": [0]}], "state": state}
    with pytest.raises(ConfigError, match=r"moments of shape \[3\] for a parameter of shape \[2, 2\]"):
        check_fits(Path("x.ckpt"), {"state_dict": module.state_dict(), "optimizer_states": [optimizer]}, module)


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
