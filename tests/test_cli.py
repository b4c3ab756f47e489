import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jsonargparse
import pytest
import torch
import yaml
from filelock import FileLock

from mobilemamba.cli import plan
from mobilemamba.cli.messages import mistake
from mobilemamba.errors import ConfigError, DataError, MobileMambaError, user_error
from mobilemamba.models import read_card
from mobilemamba.sweep import network_kwargs
from mobilemamba_command import COMMANDS, Command, main

TINY = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--data.img_size 32 --data.batch_size 4 --model.warmup_epochs 0 --model.arch.embed_dims [16,16,16] "
    "--model.arch.depths [1,1,1] --table_size null"
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plots: None) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _restore_torch() -> object:
    yield
    torch.use_deterministic_algorithms(False)


def test_fit_alone_trains_on_the_sample_and_keeps_runs_apart() -> None:
    cli = main(["fit", *TINY])
    assert type(cli.datamodule).__name__ == "FashionMNISTSample"
    assert cli.model.hparams["num_classes"] == 10
    run_dir = Path("runs/default")
    assert json.loads((run_dir / "results.json").read_text())["data"] == cli.datamodule.name
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert list(run_dir.glob("events*"))
    assert len(list(run_dir.glob("*.png"))) == 2
    assert "val/top1" in next(csv.reader((run_dir / "csv/version_0/metrics.csv").open()))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["trainer"]["deterministic"] == "warn"

    main(["fit", *TINY])
    assert Path("runs/default-2/results.json").exists()
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --ckpt_path last"):
        main(["fit", *TINY, "--trainer.default_root_dir", "runs/default"])

    # Other commands leave the training's files alone.
    before = (run_dir / "config.yaml").read_text()
    main(["validate", "--config", str(run_dir / "config.yaml"), "--ckpt_path", str(run_dir / "checkpoints/best.ckpt")])
    assert (run_dir / "config.yaml").read_text() == before

    card = read_card(run_dir / "best.safetensors")
    assert (card.model, card.class_names) == ("mobilemamba_s6", cli.datamodule.class_names)
    assert card.preprocessing.img_size == (32, 32)


def test_last_is_written_in_epochs_that_are_not_the_best_beside_a_checkpoint_of_one_s_own() -> None:
    own = shlex.split("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=val/loss")
    main(["fit", *TINY, "--trainer.max_epochs", "3", "--model.lr", "0", *own])
    folder = Path("runs/default")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert (folder / "best.safetensors").exists()
    assert list(folder.glob("checkpoints/epoch=*.ckpt"))
    logged = list(csv.DictReader((folder / "csv/version_0/metrics.csv").open()))
    assert sum(bool(line["train/grad_norm"]) and bool(line["lr"]) for line in logged) == 6  # of steps


def test_a_run_folder_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/x").mkdir(parents=True)
    monkeypatch.setattr("mobilemamba.cli.folder.LOCK_SECONDS", 0.1)
    with FileLock("runs/x/.lock"), pytest.raises(ConfigError, match="another process is training in runs/x"):
        main(["fit", *TINY, "--name", "x"])


def test_the_lock_is_released_after_a_run() -> None:
    with pytest.raises(MobileMambaError):
        main(["fit", *TINY, "--name", "x", "--model.name", "resnet999"])
    main(["fit", *TINY, "--name", "x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.lrr 3", "unknown setting model.lrr"),
        ("--model.lr abc", "model.lr: expected a number, got abc"),
        ("--model.arch.global_ratio [a]", "model.arch.global_ratio: expected a number, got a"),
        ("--model.arch.directions 3", "model.arch.directions: expected one of 1, 2, 4, got 3"),
        ("--model.arch.global_ratio [2,.1,.1]", "global_ratio=2.0: expected 0 to 1"),
        ("--model.name mobilemamba_s7", "model name 'mobilemamba_s7': expected"),
        ("--model.label_smoothing 2", "label_smoothing=2.0: expected 0 to 1"),
        ("--data ImageFoler", "data: expected a class, got ImageFoler; did you mean ImageFolder?"),
        ("--data ImageFolder", "data: missing root"),
        ("--data ImageFolder --data.root /nope", "data.root /nope is not a folder"),
        ("--data.batch_size 0", "data.batch_size 0 is impossible"),
        ("--config nofile.yaml", "--config nofile.yaml: No such file or directory; choose"),
        ("--config broken.yaml", "--config broken.yaml: line 1, column 13: expected the node content"),
        ("--config typo.yaml", "unknown setting model.arch.depth"),
        ("--trainer.max_epoch 3", "unknown setting trainer.max_epoch"),
        ("--model.arch.globl_ratio [1]", "unknown setting model.arch.globl_ratio"),
        ("--trainer.max_epochs x", "trainer.max_epochs: expected a whole number, got x"),
        ("--sweep.changed x", "sweep.changed: expected one of stop, rerun, keep, got x"),
        # What may have been meant.
        ("--model.class_path SegmentationTsk", "got {class_path: SegmentationTsk}; did you mean SegmentationTask?"),
        ("--data.class_path SegmentationFoldr", "did you mean SegmentationFolder?"),
        ("--data.class_path Nothing", "COCOFolder, YOLOFolder, COCO, or a class by the path that Python imports it by"),
        ("--model.lrr 3", "did you mean model.lr?"),
        ("--trainer.max_epoch 3", "did you mean trainer.max_epochs?"),
        ("--sweep.onyl x", "did you mean sweep.only?"),
        ("--wieghts x", "unknown setting wieghts; did you mean weights or model.weights?"),
        ("--model.mixing.prb 1", "did you mean model.mixing.prob?"),
        ("--model.qqq 1", "unknown setting model.qqq; leave it out, or take one that --help or --help-all lists"),
        (
            "--data.root x --data ImageFolder",
            "unknown setting data.root; the data that is chosen has none; choose a",
        ),
        ("--model nosuch.Task", "model: no such class: nosuch.Task (No module named 'nosuch')"),
        ("--trainer.callbacks nosuch.C", "trainer.callbacks: no such class: nosuch.C (No module named 'nosuch')"),
        ("--trainer.lr 1", "unknown setting trainer.lr; did you mean model.lr?"),
        ("--lr 1", "unknown setting lr; did you mean model.lr?"),
        ("--max-epochs 3", "unknown setting max-epochs; did you mean trainer.max_epochs?"),
        ("--seed 3", "unknown setting seed; did you mean data.seed or seed_everything?"),
        ("--batch_size 3", "unknown setting batch_size; did you mean data.batch_size?"),
        (
            "--trainer.callbacks EarlyStoping",
            "trainer.callbacks: expected a class, got EarlyStoping; did you me",
        ),
        (
            "--trainer.logger TensorbordLogger",
            "trainer.logger: expected a class or true or false, got Tensorb",
        ),
        ("--model MobileMamba_T2", "model: expected a class, got MobileMamba_T2; did you mean mobilemamba_t2?"),
        ("--sweep '{row: {a: {}}}'", "unknown setting sweep.row; did you mean sweep.rows?"),
        ("--sweep.row.a.lr 3", "unknown setting sweep.row; did you mean sweep.rows?"),
        (
            "--trainer.callbacks '{class_path: EarlyStopping, init_args: {monitr: x}}'",
            "did you mean trainer.callbacks.mo",
        ),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.patience=x",
            "trainer.callbacks.patience: expected a whole number",
        ),
        ("--trainer.callbacks.on_fit_start 5", "unknown setting trainer.callbacks.on_fit_start; the trainer.callbacks"),
        ("resnet18", "unexpected resnet18: expected options, each a name with one value; leave it out, or see --help"),
        ("--model.betas [1]", "model.betas: expected a tuple with 2 elements, got [1"),
        ("--model.lr 1 2", "unexpected 2: expected options"),
        ("--weights --name x", "--model.weights has no value; give one after it, or leave it out"),
        (
            "--sweep.grid {a:[1]}",
            "sweep.grid: expected settings, such as {name: value} with a blank after each colon",
        ),
        ("--data NoSuchData", "data: expected a class, got NoSuchData; give FashionMNISTSample, ImageFolder, ImageNet"),
        ("--trainer.callbacks EarlyStopping", "trainer.callbacks: missing monitor; give it by --trainer.callbacks.mon"),
        ("--config .", "--config .: it is a folder; choose a file"),
        ("--config '{a'", "--config {a: line 1, column 3: expected ',' or '}'"),
        ("--model.arch 5", "model.arch: expected settings, such as {name: value} with a blank after each colon, got 5"),
        ("--table_size -5", "table_size=-5: expected the side of a picture in pixels, e.g. 224, or null"),
        pytest.param("--name a\udcff", "a name that is not UTF-8; rename it", id="name"),  # pytest-xdist takes UTF-8
        pytest.param("--config \udcff", "--config \\xff: No such file", id="config"),
        (
            "--model.mixing 5",
            "model.mixing: expected settings, such as {name: value} with a",
        ),
        (
            "--sweep none",
            "after each colon or null, got none; give that, or leave it",
        ),
        ("--model.weights.x y", "model.weights: expected text, got {x: y}; give that"),
        ("--model.arch null", "model.arch=null: expected choices such as {d_state: 16}; leave it out"),
        ("--config null.yaml", "trainer=None: expected a section of settings; leave it out for the defaults"),
        # What Lightning, torch and timm complain of while they are given the settings.
        ("--trainer.strategy nonsense", "trainer.strategy=nonsense: You selected an invalid strategy name"),
        ("--trainer.accelerator mps", "`MPSAccelerator` can not run on your system"),
        ("--trainer.devices abc", "trainer.devices=abc: expected 1 to"),
        ("--trainer.profiler nonsense", "trainer.profiler=nonsense: When passing string value"),
        ("--trainer.logger MLFlowLogger", "Requirement 'mlflow"),
        ("--trainer.callbacks EarlyStopping --trainer.callbacks.monitor x --trainer.callbacks.mode x", "`mode` can be"),
        (
            "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/x",
            "metric `val/x` which is not",
        ),
        ("--trainer.default_root_dir broken.yaml/x", "Not a directory: broken.yaml/x"),
        ("--trainer.devices []", "trainer.devices=[]: expected 1 to"),
        (
            "--trainer.val_check_interval 100000",
            "trainer.val_check_interval=100000: `val_check_interval` (100000)",
        ),
        ("--trainer.overfit_batches 1e-9", "You requested to check 1e-09 of the"),
        ("--trainer.max_time 5", "trainer.max_time=5: `Timer(duration='5')` is not a valid duration"),
        ("--trainer.callbacks BackboneFinetuning", "BackboneFinetuning fails: AttributeError: 'Classific"),
        ("--model.arch.ssm_ratio .inf", "ssm_ratio=inf: expected at most 64"),
        ("--model.arch.embed_dims [16,16,100000000]", "embed_dims=(16, 16, 100000000): expected at most 16,384"),
        ("--ckpt_path s3://bucket/x.ckpt", "No module named 's3fs'; install it first"),
        ("--model.in_chans 7", "mobilemamba_s6 does not take the data's pictures of 3 channels and 32x32 pixels: "),
        # What they would pass over in silence, or choke on later.
        ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches=0: expected more than 0"),
        ("--trainer.max_epochs -2", "trainer.max_epochs=-2: expected more than 0, or -1"),
        ("--trainer.limit_val_batches 2.5", "trainer.limit_val_batches=2.5: expected a share of the batches from 0 to"),
        ("--trainer.limit_train_batches -1", "trainer.limit_train_batches=-1: expected more than 0"),
        ("--trainer.val_check_interval 0", "trainer.val_check_interval=0: expected more than 0"),
        ("--trainer.gradient_clip_val -1", "trainer.gradient_clip_val=-1: expected 0 or more"),
        ("--trainer.devices 9999", "trainer.devices=9999: expected 1 to"),
        ("--trainer.max_epochs 99999999999999999999999", "expected 1,000,000,000 or less"),
        ("--trainer.gradient_clip_val .inf", "trainer.gradient_clip_val=inf: expected 1,000,000,000 or less"),
        ("--trainer.min_epochs 5", "trainer.min_epochs=5: expected trainer.max_epochs=1 or less"),
        ("--trainer.barebones true", "trainer.barebones=True: expected false: a run"),
        ("--model.num_classes 7", "model.num_classes=7: the data decide it, and have 10 classes; leave it out"),
        ("--model.mixing.mixup_alpha .nan", "mixing.mixup_alpha=nan, mixing.cutmix_alpha=1.0: expected 0 or more"),
        ("--trainer.sync_batchnorm true", "trainer.sync_batchnorm=True: torch synchronises batch norms on GPUs alone"),
        ("--seed_everything -5", "seed_everything=-5: expected 0 to 4294967295"),
        ("--model.betas [2,3]", "betas=[2.0, 3.0]: expected two numbers from 0 to below 1; change model.betas"),
        ("--model.lr .inf", "lr=inf: expected"),
        # Files that are none.
        ("--config typo.yaml --config tab.yaml", "--config tab.yaml: line 2, column 1: found character '\\t' that"),
        ("--config x.yaml --config bad.yaml", "bad.yaml: trainer.max_epochs: expected a whole number, got x"),
        ("--config empty.yaml", "--config empty.yaml holds nothing; expected settings"),
        ("--config list.yaml", "--config list.yaml holds a list; expected settings"),
        ("--config latin.yaml", "--config latin.yaml: expected text in UTF-8, and byte 6 is none; save"),
        ("--config utf16.yaml", "--config utf16.yaml: expected text in UTF-8"),
        (f"--name {'x' * 300}", "File name too long"),
        ("--model.weights typo.yaml", "cannot read typo.yaml: "),
        ("--model.weights .", ". is a folder; give a .safetensors, .pth or .ckpt file"),
    ],
)
def test_mistakes_are_one_line_with_the_setting(options: str, message: str) -> None:
    Path("broken.yaml").write_text("model: {lr: ")
    Path("typo.yaml").write_text("model: {arch: {depth: 3}}")
    Path("tab.yaml").write_text("model:\n\tlr: 1")
    Path("x.yaml").write_text("name: x")
    Path("bad.yaml").write_text("trainer: {max_epochs: x}")
    Path("empty.yaml").touch()
    Path("null.yaml").write_text("trainer: null")
    Path("list.yaml").write_text("- a")
    Path("latin.yaml").write_bytes("name: Ä".encode("latin-1"))
    Path("utf16.yaml").write_text("name: x", encoding="utf-16")
    with pytest.raises(MobileMambaError) as caught:
        main(["fit", *([] if "null.yaml" in options else TINY), *shlex.split(options)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "cannot read own.ckpt: it is no file of torch's, or a damaged one; expected"),
        ([1], "own.ckpt holds a list; expected a state dict"),
        ({"net": torch.nn.ReLU()}, "own.ckpt: it holds more than tensors (torch.nn.modules.activation.ReLU); expected"),
        ({"a": torch.ones(1)}, "own.ckpt is no checkpoint of fit; give it by --weights own.ckpt if it holds weights"),
        ({"state_dict": {"a": torch.ones(1)}}, "own.ckpt is of another network: model.patch_embed"),
        (
            {"state_dict": {}, "hyper_parameters": {"q": 1}},
            "of another task than mobilemamba.tasks.ClassificationTask: unknown setting model.q; name it by --model",
        ),
    ],
    ids=["picture", "list", "code", "weights", "network", "task"],
)
def test_a_checkpoint_that_cannot_be_evaluated_is_one_line(content: object, message: str) -> None:
    if isinstance(content, bytes):
        Path("own.ckpt").write_bytes(content)
    else:
        if isinstance(content, dict) and "state_dict" in content:
            content |= {"pytorch-lightning_version": "2.6.6"}
        torch.save(content, "own.ckpt")
    with pytest.raises(MobileMambaError) as caught:
        main(["validate", "--ckpt_path", "own.ckpt"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_running_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilemamba.tasks.ClassificationTask.training_step", lambda *_: torch.empty(2**55))
    with pytest.raises(
        ConfigError, match=r"^out of memory \(tried to allocate 144115188075855872 bytes\); try a smaller"
    ):
        main(["fit", *TINY])


def test_a_callback_whose_defaults_are_no_yaml_is_kept_with_the_run() -> None:
    main(["fit", *TINY, "--trainer.callbacks", "Timer"])
    saved = yaml.safe_load(Path("runs/default/config.yaml").read_text())
    assert saved["trainer"]["callbacks"]["init_args"]["interval"] == "step"
    assert plan(["--config", "runs/default/config.yaml"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("validate --trainer.limit_val_batches 0", "trainer.limit_val_batches=0: expected more, as validate has no"),
        ("test --trainer.limit_test_batches 0", "trainer.limit_test_batches=0: expected more, as test has no"),
        ("validate --model.weights w.pth --ckpt_path x.ckpt", "--weights with --ckpt_path: both say what to validate"),
        ("validate --ckpt_path registry:x", "ckpt_path=registry:x: a registry of models needs litmodels; pip install"),
    ],
)
def test_an_evaluation_of_nothing_is_one_line(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        main(shlex.split(options))


@pytest.mark.parametrize("place", ["training_step", "configure_optimizers", "build_model"])
def test_a_bug_keeps_its_traceback(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        _ = torch.zeros(2) @ torch.zeros(3) if place == "training_step" else {}["a bug"]

    monkeypatch.setattr(f"mobilemamba.tasks.ClassificationTask.{place}", bug)
    with pytest.raises(Exception, match="size" if place == "training_step" else "a bug") as caught:
        main(["fit", *TINY])
    assert not isinstance(caught.value, MobileMambaError)


@pytest.mark.parametrize("command", ["", "nonsense", "fit --trainer.accelerator mps --name x"])
def test_the_process_says_one_line_and_exits_with_2(command: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root))
    done = subprocess.run(
        [sys.executable, "-m", "mobilemamba_command", *command.split()], capture_output=True, text=True, check=False
    )
    if not command:
        assert done.returncode == 0
        assert "usage" in done.stdout
        return
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mobilemamba: error: ")


def test_help_lists_commands_and_tools(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "backends", "convert", "summary"):
        assert f"  {command} " in listed
    with pytest.raises(ConfigError, match=r"unknown command 'fitt': did you mean fit\?"):
        main(["fitt"])
    with pytest.raises(ConfigError, match=r"unknown command 'x': expected one of: fit, .*summary"):
        main(["x"])


def test_tools_are_dispatched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shout(text: str, times: int = 1) -> None:
        print(text.upper() * times)

    monkeypatch.setattr("mobilemamba.tools.shout", shout, raising=False)
    monkeypatch.setitem(COMMANDS, "shout", Command("shout", "mobilemamba.tools:shout"))
    assert main(["shout", "a", "--times", "3"]) is None
    assert capsys.readouterr().out == "AAA\n"
    with pytest.raises(ConfigError, match="times: expected a whole number, got x"):
        main(["shout", "a", "--times", "x"])


def test_print_config_of_a_sweep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(root / "experiments/ablation_xi.yaml"), "--print_config"])
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert len(printed["sweep"]["rows"]) == 9
    assert not Path("runs").exists()


def test_options_win_over_a_file_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("trainer: {max_epochs: 5}")
    file, option = ["--config", "x.yaml"], ["--trainer.max_epochs", "7"]
    for options in ([*option, *file], [*file, *option]):
        assert plan(options)[0].config["trainer"]["max_epochs"] == 7


def test_plan_gives_what_timm_takes(root: Path) -> None:
    rows = plan(["--config", str(root / "experiments/ablation_xi.yaml")])
    assert len(rows) == 9
    assert network_kwargs(rows[0].config) == {
        "model_name": "mobilemamba_s6",
        "global_ratio": [0.6, 0.6, 0.6],
        "local_ratio": [0.4, 0.3, 0.3],
    }
    single = plan(["--model.name", "resnet18"])
    assert [network_kwargs(row.config) for row in single] == [{"model_name": "resnet18"}]


def test_errors_from_data_workers_are_one_line() -> None:
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
        "mobilemamba.errors.DataError: cannot read a.png: truncated"
    )
    found = user_error(DataError(text))
    assert type(found) is DataError
    assert str(found) == "cannot read a.png: truncated"
    assert user_error(ValueError("a bug")) is None


@pytest.mark.parametrize(
    ("annotation", "given", "message"),
    [
        (int, "x", "a: expected a whole number, got x; give that, or leave it out"),
        (int | None, "x", "a: expected a whole number, got x; give that, or leave it out"),
        (list[int], "[x]", "a: expected a whole number, got x; give that, or leave it out"),
        (
            dict[str, int],
            "{a:1}",
            "a: expected settings, such as {name: value} with a blank after",
        ),
        (Literal[1, 2, "1", "x"], "3", "a: expected one of 1, 2, x, got 3"),
    ],
)
def test_messages_of_the_installed_jsonargparse(annotation: type, given: str, message: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--a", type=annotation)
    with pytest.raises(jsonargparse.ArgumentError) as caught:
        parser.parse_args(["--a", given])
    assert str(mistake(str(caught.value), [], [], {})).startswith(message)
