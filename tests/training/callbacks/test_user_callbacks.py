"""Callbacks and loggers that are not ours: what they cannot do is said in time, and costs no results."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger

from mobilemamba.errors import ConfigError, user_error
from mobilemamba.training.callbacks.user_callbacks import complaint
from mobilemamba_command import main
from tests.training.callbacks.test_checkpoints import Counter, fit, results, scores

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")
TINY = shlex.split(
    "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--trainer.num_sanity_val_steps 0 --data.img_size 32 --data.batch_size 4 --model.warmup_epochs 0 "
    "--model.arch.embed_dims [16,16,16] --model.arch.depths [1,1,1] --table_size null"
)


class Fails(Callback):
    """In one hook, in the second of two epochs."""

    def __init__(self, hook, error=ValueError):
        def fail(trainer, *_, **__):
            if trainer.global_step == 8:
                raise error("odd")

        setattr(self, hook, fail)


class FailingLogger(CSVLogger):
    def after_save_checkpoint(self, checkpoint_callback):
        if "last" in Path(checkpoint_callback.filename).stem:
            raise ValueError("odd")


class FailingSaver(ModelCheckpoint):
    """After its folder has gone, say."""

    def _save_checkpoint(self, trainer, filepath):
        raise NotADirectoryError("odd")


@pytest.mark.parametrize(
    "hook", ["on_train_epoch_end", "on_save_checkpoint", "on_train_end", "on_fit_end", "teardown", "state_dict"]
)
def test_what_fails_after_the_last_step_costs_no_results(tmp_path, hook):
    failing = Fails(hook)
    if hook == "state_dict":
        failing.state_dict = lambda: 1 // 0
    with pytest.raises((ValueError, ZeroDivisionError)):
        fit(tmp_path, Counter(scores(at8=70)), failing, max_epochs=2 if hook != "state_dict" else 1)
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["best_step"], found["epochs"]) == ((8, 2) if hook != "state_dict" else (4, 1))
    assert torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)["global_step"] == found["best_step"]


def test_a_logger_or_a_saver_that_fails_at_the_end_costs_no_results_either(tmp_path):
    with pytest.raises(NotADirectoryError):
        fit(tmp_path / "a", Counter(scores(at4=70)), FailingSaver(tmp_path / "x"), max_epochs=1)
    assert results(tmp_path / "a")["best_step"] == 4
    with pytest.raises(ValueError, match="odd"):
        fit(tmp_path / "b", Counter(scores(at4=70)), max_epochs=1, logger=FailingLogger(tmp_path))
    assert results(tmp_path / "b")["best_step"] == 4


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_batch_end"])
def test_a_training_that_has_not_come_to_its_end_has_no_results(tmp_path, hook):
    with pytest.raises(ValueError, match="odd"):
        fit(tmp_path, Counter(scores()), Fails(hook))
    assert not (tmp_path / "results.json").exists()


def test_what_fails_of_ours_is_no_end(tmp_path, monkeypatch):
    monkeypatch.setattr("mobilemamba.training.callbacks.checkpoints.LastCheckpoint.state_dict", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Counter(scores()), max_epochs=1)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("kind", "folder", "name", "message"),
    [
        (
            ModelCheckpoint,
            "/dev/null/x",
            None,
            "cannot write /dev/null/x/epoch=0-step=0.ckpt: Not a directory; choose",
        ),
        (ModelCheckpoint, "x", "y" * 300, "File name too long"),
        (ModelCheckpoint, "x", "a\0b", r"/x/a\\x00b.ckpt: .*embedded null .+; choose another"),
        (ModelCheckpoint, "x", "{epoch", "filename='{epoch' is no pattern of a name .*; expected for instance {epoch}"),
        (ModelCheckpoint, "x", "{epoch:q}", "Unknown format code 'q'"),
        (OnExceptionCheckpoint, "/dev/null/x", "y", "OnExceptionCheckpoint cannot write /dev/null/x/y.ckpt"),
    ],
)
def test_a_file_that_cannot_be_written_is_found_before_the_training(tmp_path, kind, folder, name, message):
    module = Counter(scores())
    with pytest.raises((ConfigError, OSError)) as caught:  # the last one tries to save a checkpoint of our error
        fit(tmp_path, module, kind(str(tmp_path / folder), name))
    assert re.search(message, str(user_error(caught.value)))
    assert not module.weight


def test_a_trial_of_a_name_leaves_nothing_behind(tmp_path):
    fit(tmp_path, Counter(scores()), ModelCheckpoint(tmp_path / "own", "{epoch:02d}-{val/top1:.1f}"), max_epochs=1)
    assert [path.name for path in (tmp_path / "own").rglob("*") if path.is_file()] == ["top1=50.0.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trainer.callbacks+=BackboneFinetuning", "trainer.callbacks: BackboneFinetuning fails: AttributeError: "),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/none",
            "trainer.callbacks: EarlyStopping fails: RuntimeError: Early stopping conditioned on metric `val/none`",
        ),
        (
            "--trainer.logger+=CSVLogger --trainer.logger.save_dir . --trainer.logger.flush_logs_every_n_steps 0",
            "trainer.logger: CSVLogger fails: ZeroDivisionError: integer modulo by zero; change its settings",
        ),
    ],
)
def test_the_line_names_what_has_failed(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        main(["fit", *TINY, *options.split()])
    assert str(caught.value).startswith(message)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("hook", "said"), [("setup", True), ("on_fit_start", True), ("on_train_batch_end", False)])
def test_a_class_of_one_s_own_is_named_at_set_up_and_keeps_its_traceback_in_training(tmp_path, hook, said):
    failing = Fails(hook)
    setattr(failing, hook, lambda *_, **__: {}["odd"])
    with pytest.raises(KeyError) as caught:
        fit(tmp_path, Counter(scores()), failing)
    line = complaint(caught.value)
    assert (line is not None) == said
    assert not said or line.startswith("trainer.callbacks: Fails fails: KeyError: 'odd' (test_user_callbacks.py, line ")
