"""What a training prints, with and without a terminal."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from mobilemamba.cli.report import print_scores
from mobilemamba.tasks import ClassificationTask
from mobilemamba.training.callbacks import EpochLines, TrainingBar, ValidateAtEnd
from mobilemamba.training.contract import TaskContract
from mobilemamba.training.detection_metrics import BOX_SCORES
from tests.training.callbacks.runs import Data

QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}


def fit(*callbacks, **options) -> Trainer:
    arch = {"embed_dims": (16, 16, 16), "depths": (1, 1, 1)}
    task = ClassificationTask("mobilemamba_t2", arch, num_classes=5, warmup_epochs=0)
    trainer = Trainer(callbacks=list(callbacks), **{**QUIET, "num_sanity_val_steps": 0, "max_epochs": 2, **options})
    trainer.fit(task, datamodule=Data())
    return trainer


def test_a_line_for_each_validation(capsys: pytest.CaptureFixture[str]) -> None:
    fit(EpochLines(), enable_progress_bar=False, val_check_interval=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"epoch {epoch}/2, step {step}" for epoch, step in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6))
    ]
    pattern = r"train loss \d\.\d{4}, val loss \d\.\d{4}, top1 \d+\.\d\d, top5 100\.00, 0:\d\d:\d\d left"
    assert all(re.search(pattern, line) for line in lines)


def test_a_score_of_nothing_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as that of large objects where there are none; a loss that is no number is told, as are other metrics."""
    metrics = {"val/loss": math.nan, "val/map": 12.5, "val/map_large": math.nan, "val/mine": math.nan}
    trainer = SimpleNamespace(callback_metrics=metrics, state=SimpleNamespace(fn="fit"), sanity_checking=False)
    trainer.is_global_zero, trainer.max_epochs, trainer.global_step = True, None, 0
    trainer.fit_loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(started=1)))
    task = type("Found", (TaskContract,), {"scores": BOX_SCORES})()
    EpochLines().on_validation_end(trainer, task)  # type: ignore[arg-type]
    assert "step 0: val loss nan, map 12.50, map_large -, mine nan" in capsys.readouterr().out
    print_scores(metrics, BOX_SCORES, "val", "a detector", None)
    assert re.search(r"as trained +│ +12.50 │ +- │ +nan", capsys.readouterr().out)


def test_a_line_for_each_epoch_without_a_validation(capsys: pytest.CaptureFixture[str]) -> None:
    fit(EpochLines(), enable_progress_bar=False, limit_val_batches=0)
    assert [line[: line.index("loss")] for line in capsys.readouterr().out.splitlines()] == [
        "epoch 1/2, step 3: train ",
        "epoch 2/2, step 6: train ",
    ]


def test_the_loss_is_that_of_a_batch_and_the_last_validation_is_of_the_last_epoch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = {"enable_progress_bar": False, "accumulate_grad_batches": 3, "check_val_every_n_epoch": 2}
    trainer = fit(EpochLines(), ValidateAtEnd(), max_epochs=3, default_root_dir=tmp_path, **options)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"epoch {epoch}/3, step {step}" for epoch, step in ((1, 1), (2, 2), (3, 3), (3, 3))
    ]
    assert f"train loss {float(trainer.callback_metrics['train/loss']):.4f}" in lines[2]
    assert "top1" in lines[3]


@pytest.mark.parametrize(("epochs", "limit"), [(10**23, None), (10**400, None), (10**23, "00:00:05:00")])
def test_an_end_in_millions_of_years_is_not_told(
    capsys: pytest.CaptureFixture[str], epochs: int, limit: str | None
) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = True

    fit(EpochLines(), Stop(), max_epochs=epochs, limit_train_batches=2, enable_progress_bar=False, max_time=limit)
    out = capsys.readouterr().out
    assert "left" not in out if limit is None else re.search(r" 0:0[45]:\d\d left$", out)


def test_the_bar_shows_the_loss_alone_and_is_gone_before_the_end() -> None:
    stopped = []

    class End(EpochLines):
        def on_fit_end(self, trainer, pl_module) -> None:
            stopped.append(trainer.progress_bar_callback._progress_stopped)

    bar = TrainingBar()
    trainer = fit(bar, ValidateAtEnd(), End(), max_epochs=-1, max_steps=1, limit_val_batches=1)
    assert stopped == [True]
    assert bar._get_train_description(1) == "Epoch 2   "
    trainer.fit_loop.max_epochs = 30
    assert bar._get_train_description(1) == "Epoch 2/30"
    assert list(bar.get_metrics(trainer, trainer.lightning_module)) == ["loss"]
    assert bar.progress.live.transient


def test_the_loggers_record_of_the_settings_is_plain_yaml(tmp_path: Path) -> None:
    options = {"limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": 1, "enable_progress_bar": False}
    fit(logger=True, default_root_dir=tmp_path, **options)
    (file,) = tmp_path.rglob("hparams.yaml")
    found = yaml.safe_load(file.read_text())
    assert (found["betas"], found["arch"]) == ([0.9, 0.999], {"embed_dims": [16, 16, 16], "depths": [1, 1, 1]})
