"""What the command says of a mistake: one line, and 2 for its exit."""

import gc
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mobilemamba.cli.exits import console
from mobilemamba.cli.messages import mistake
from mobilemamba.cli.mistakes import as_user_errors
from mobilemamba.errors import ConfigError, DataError, MobileMambaError, user_error
from mobilemamba.training.distillation import Distillation
from mobilemamba.training.mixing import Mixing
from mobilemamba_command import main, run

TINY = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--data.img_size 32 --data.batch_size 4 --model.warmup_epochs 0 --model.arch.embed_dims [16,16,16] "
    "--model.arch.depths [1,1,1] --table_size null"
)


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
        ("--data ImageFolder --data.root /nope", "data.root /nope is not a folder: give"),
        ("--data ImageFolder --data.root nope", "data.root nope is not a folder in /"),
        *((f"--{part} no/x.yaml", f"{part}: no such file: no/x.yaml") for part in ("trainer", "model", "sweep")),
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
        (
            "--trainer.plugins x",
            "trainer.plugins: expected a class, got x; give a class by the path that Python imports it",
        ),
        ("--model nosuch.Task", "model: no such class: nosuch.Task (No module named 'nosuch')"),
        ("--trainer.callbacks nosuch.C", "trainer.callbacks: no such class: nosuch.C (No module named 'nosuch')"),
        ("--trainer.lr 1", "unknown setting trainer.lr; did you mean model.lr?"),
        ("--lr 1", "unknown setting lr; did you mean model.lr?"),
        ("--modle.lr 1", "unknown setting modle; did you mean model?"),
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
        ("--sweep.rows '{a: {}}' --ckpt_path last", "ckpt_path=last with a sweep: rows go on by themselves; leave it"),
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
        ("--model.head pspnet", "before, e.g. --model SegmentationTask or --model DetectionTask"),
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
        pytest.param(
            *("--trainer.accelerator gpu", "trainer.accelerator=gpu: expected cpu or auto, as torch finds no GPU here"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param(
            *("--trainer.accelerator auto --trainer.devices 9999", "trainer.devices=9999: expected 1 to"),
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        ("--trainer.accelerator mps", "`MPSAccelerator` can not run on your system"),
        ("--trainer.devices abc", "trainer.devices=abc: expected 1 to"),
        ("--trainer.profiler nonsense", "trainer.profiler=nonsense: When passing string value"),
        ("--trainer.logger MLFlowLogger", "Requirement 'mlflow"),
        ("--trainer.callbacks EarlyStopping --trainer.callbacks.monitor x --trainer.callbacks.mode x", "`mode` can be"),
        (
            "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor val/x",
            "metric `val/x` which is not",
        ),
        (
            "--trainer.default_root_dir broken.yaml/x",
            "the run folder broken.yaml/x: Not a directory; choose another folder",
        ),
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
        ("--config hollow.yaml", "hollow.yaml: unknown setting modle; did you mean model?"),
        ("--config '{model: {arch: {depths: [1,1,1], ssm: {}}}}'", "unknown setting model.arch.ssm"),
        ("--model.mixng {}", "unknown setting model.mixng; did you mean model.mixing?"),
        ("--config '{sweep: {rows: {a: {modle: {}}}}}'", "row 'a': unknown setting modle; did you mean model?"),
        ("--config '{sweep: {ros: {}, rows: {a: {}}}}'", "unknown setting sweep.ros; did you mean sweep.rows?"),
        ("--config x.yaml --config bad.yaml", "bad.yaml: trainer.max_epochs: expected a whole number, got x"),
        ("--config empty.yaml", "--config empty.yaml holds nothing; expected settings"),
        ("--config list.yaml", "--config list.yaml holds a list; expected settings"),
        ("--config words.yaml", "--config words.yaml holds text; expected settings"),
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
    Path("hollow.yaml").write_text("modle: {}")
    Path("empty.yaml").touch()
    Path("null.yaml").write_text("trainer: null")
    Path("list.yaml").write_text("- a")
    Path("words.yaml").write_text("just words")
    Path("latin.yaml").write_bytes("name: Ä".encode("latin-1"))
    Path("utf16.yaml").write_text("name: x", encoding="utf-16")
    with pytest.raises(MobileMambaError) as caught:
        main(["fit", *([] if "null.yaml" in options else TINY), *shlex.split(options)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_second_file_without_an_option_is_not_a_mistake_of_the_first() -> None:
    Path("x.yaml").write_text("name: x")
    with pytest.raises(MobileMambaError, match=r"^unexpected y.yaml: .*; give each file its own --config, or see"):
        main(["fit", "--config", "x.yaml", "y.yaml"])


def test_an_option_without_a_value_is_not_a_mistake_of_a_file() -> None:
    Path("x.yaml").write_text("name: x")
    with pytest.raises(MobileMambaError, match=r"^--sweep.dry_run has no value; give one after it, or leave it out$"):
        main(["fit", "--config", "x.yaml", "--sweep.dry_run"])


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


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            lambda *_: torch.empty(2**55),
            r"out of memory \(tried to allocate 144115188075855872 bytes\); try a smaller",
        ),
        (
            lambda *_: torch.zeros(2).put_(torch.tensor([0]), torch.ones(1)),
            "trainer.deterministic=true: put_, an operator of this training, .*; use --trainer.deterministic warn",
        ),
    ],
)
def test_what_a_step_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch, step: Any, message: str) -> None:
    monkeypatch.setattr("mobilemamba.tasks.ClassificationTask.training_step", step)
    with pytest.raises(ConfigError, match=f"^{message}"):
        main(["fit", *TINY, "--trainer.deterministic", "true"])


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


@pytest.mark.parametrize("command", ["", "nonsense"])
def test_the_process_says_one_line_and_exits_with_2(command: str) -> None:
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


def test_so_it_does_of_what_needs_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mobilemamba", *shlex.split("fit --trainer.accelerator mps --name x")])
    monkeypatch.setattr("mobilemamba.cli.exits.keep_freed_memory", lambda: None)  # for the rest of a process
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert gc.isenabled()  # as it is not while all is imported
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err.strip().splitlines()[-1].startswith("mobilemamba: error: ")


def test_a_warning_is_one_line_without_its_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mobilemamba.cli.exits.keep_freed_memory", lambda: None)
    with warnings.catch_warnings():
        before = warnings.showwarning
        with console():
            warnings.simplefilter("always")
            warnings.warn("a.png cannot be read\n and is skipped", stacklevel=1)
            warnings.warn("for those who write code", DeprecationWarning, stacklevel=1)
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "warning: a.png cannot be read and is skipped\n"


def test_a_mistake_that_a_library_has_wrapped_is_said_alone() -> None:
    with pytest.raises(DataError, match=r"^cannot read a.png$"), as_user_errors([]):
        raise RuntimeError("a worker has failed") from DataError("cannot read a.png")


def test_the_option_that_lightning_complains_of_is_named_beside_others() -> None:
    expected = "^trainer.x=5: `x`=5 is wrong; change it, or leave it out$"
    with pytest.raises(ConfigError, match=expected), as_user_errors(["word", "--tta", "--y", "6", "--trainer.x", "5"]):
        raise MisconfigurationException("`x`=5 is wrong.")


def test_a_message_of_an_unknown_form_is_passed_on() -> None:
    found = mistake('Parser key "a.b":  odd,\n and no more', [], [], {}, "--help-all")
    assert str(found) == "a.b: odd, and no more; --help-all says what it takes"


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
        (list[Mixing], "[{prob: x}]", "a.prob: expected a number, got x; give that, or leave it out"),
        (Mixing | Distillation, "{prob: x}", "a.prob: expected a number, got x; give that, or leave it out"),
        (Distillation | Mixing, "{prob: x}", "a.prob: expected a number, got x; give that, or leave it out"),
        (Mixing | Distillation, "{prb: 1}", "unknown setting a.prb; leave it out"),
    ],
)
def test_messages_of_the_installed_jsonargparse(annotation: type, given: str, message: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--a", type=annotation)
    with pytest.raises(jsonargparse.ArgumentError) as caught:
        parser.parse_args(["--a", given])
    assert str(mistake(str(caught.value), [], [], {})).startswith(message)
