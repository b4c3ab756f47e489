"""The pictures of a training, also of one that goes on, and of one where they cannot be drawn."""

import contextlib

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from mobilemamba.scores import LOSS
from mobilemamba.training.callbacks import TrainingPlots
from mobilemamba.training.callbacks import plots as module
from mobilemamba.training.contract import TaskContract
from tests.training.callbacks.runs import StopAfter
from tests.training.callbacks.test_checkpoints import Counter, Kill, results, scores
from tests.training.callbacks.test_checkpoints import fit as fit_counter
from tests.training.callbacks.test_progress import fit

QUICK = {"enable_progress_bar": False, "max_epochs": 2}


@pytest.mark.parametrize("batches", [1, 2])
def test_curves_and_matrix_of_the_best_validation(tmp_path, batches: int) -> None:
    plots, steps = TrainingPlots(), 6 if batches == 1 else 4  # of three batches an epoch, the last step takes one
    fit(plots, default_root_dir=tmp_path, accumulate_grad_batches=batches, **QUICK)
    for name in ("learning_curves.png", "confusion_matrix.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    epochs = {name: [e["epoch"] for e in plots.history if name in e] for name in ("train/loss", "val/loss", "lr")}
    assert epochs == {"train/loss": [1, 2], "val/loss": [1, 2], "lr": [1, 1, 2, 2]}
    (counts,) = plots.confusions.values()
    assert counts[:, 2].sum() == 12
    path = tmp_path / "state.pt"
    torch.save(plots.state_dict(), path)
    again = TrainingPlots()
    again.load_state_dict(torch.load(path, weights_only=True))
    assert again.history == plots.history
    assert again.confusions.keys() == plots.confusions.keys() == {steps}  # without a best one, of the last


def test_a_training_does_not_fail_for_its_pictures(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_):
        raise ValueError("a bug in a library")

    monkeypatch.setattr(module, "draw_curves", draw)
    with pytest.warns(UserWarning, match="no plots of the training: ValueError: a bug in a library"):
        fit(TrainingPlots(), default_root_dir=tmp_path, **{**QUICK, "max_epochs": 1})


class Confused(TaskContract, Counter):
    """Its answers are of its step, and the least loss is the best."""

    metric = monitor = "val/loss"
    scores = (LOSS,)
    total_batch_size = 2

    def __init__(self, losses) -> None:
        super().__init__(losses)
        self.save_hyperparameters({"num_classes": 2})

    @property
    def confusion(self) -> torch.Tensor:
        return torch.tensor([[0, 1, int(self.weight)]])


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize("lost", [False, True])
def test_the_matrix_is_that_of_the_results(tmp_path, monkeypatch, checkpoints: bool, lost: bool) -> None:
    drawn = []
    monkeypatch.setattr(module, "draw_confusion", lambda counts, *_: drawn.append(int(counts[0, 2])))
    losses = scores(at4=0.2, at8=0.1, at12=0.4, at16=0.3)
    saving = {"max_epochs": 4, "enable_checkpointing": checkpoints}
    with contextlib.ExitStack() as killed:
        if lost:
            killed.enter_context(pytest.raises(ConnectionAbortedError))
        fit_counter(tmp_path, Confused(losses), TrainingPlots(), *[StopAfter(3)] * lost, **saving)
    if lost and checkpoints:
        (tmp_path / "checkpoints/best.ckpt").unlink()
        last = tmp_path / "checkpoints/last.ckpt"
        fit_counter(tmp_path, Confused(losses), TrainingPlots(), ckpt_path=last, **saving)
        assert results(tmp_path)["best_step"] == 16
    assert drawn == ([8] if not lost else [16] if checkpoints else [])


class LoggedAtTheEnd(Counter):
    """Its loss is logged by its own hook, after those of the callbacks."""

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.weight.detach() - 0.5)


@pytest.mark.parametrize("step", [4, 6, 8])
def test_curves_of_a_resumed_training_are_those_of_a_whole_one(tmp_path, step: int) -> None:
    def train(name: str, *others, **options) -> list[dict[str, float]]:
        plots = TrainingPlots()
        options |= {"max_epochs": 3, "val_check_interval": 2}
        with contextlib.ExitStack() as killed:
            if others:
                killed.enter_context(pytest.raises(ConnectionAbortedError))
            fit_counter(tmp_path / name, LoggedAtTheEnd(list(range(13))), plots, *others, **options)
        return plots.history

    whole = train("whole")
    assert [(e["epoch"], e["train/loss"]) for e in whole if "train/loss" in e] == [(1, 3.5), (2, 7.5), (3, 11.5)]
    assert [(e["epoch"], e["val/top1"]) for e in whole if "val/top1" in e] == [(n / 2, 2 * n) for n in range(1, 7)]
    train("killed", Kill(step))
    assert train("killed", ckpt_path=tmp_path / "killed/checkpoints/last.ckpt") == whole


class NoOptimizer(LightningModule):
    def training_step(self, batch) -> None:
        self.log("train/loss", batch.mean())

    def validation_step(self, batch) -> None:
        self.log("val/other", batch.mean())

    def configure_optimizers(self) -> None: ...


def test_a_module_that_has_no_learning_rate_has_curves_too(tmp_path) -> None:
    plots, data = TrainingPlots(), DataLoader(torch.ones(4, 1))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(**QUICK, **quiet, default_root_dir=tmp_path, callbacks=[plots]).fit(NoOptimizer(), data, data)
    assert {name for entry in plots.history for name in entry} == {"epoch", "train/loss", "val/other"}
    assert (tmp_path / "learning_curves.png").exists()
