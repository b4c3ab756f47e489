"""best.ckpt, last.ckpt, best.safetensors and results.json name the same validation, whatever happens to a training."""

import json
import shutil
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from mobilemamba.models import read_card
from mobilemamba.training.callbacks import ExportBest, RunResults, StepSeed, ValidateAtEnd, run_checkpoints
from mobilemamba.training.checkpoint_files import checkpoints_newest_first
from tests.training.callbacks.runs import Data, small_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")
BATCHES = 4  # an epoch


class Counter(LightningModule):
    """Its one weight is the number of steps taken; its score after each of them is given."""

    metric = "val/top1"

    def __init__(self, scores=()):
        super().__init__()
        self.scores_at = scores
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return -self.weight

    def validation_step(self, batch):
        self.log(self.metric, float(self.scores_at[int(self.weight)]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class WithoutValidation(Counter):
    validation_step = LightningModule.validation_step


class OfTraining(Counter):
    """Is judged by the mean of what its steps log, or what it logs at an epoch's end; its epochs have 4 of them."""

    metric, monitor = "val/top1", "train_loss"
    options: ClassVar = {"on_step": False, "on_epoch": True}

    def training_step(self, batch):
        if self.options:
            self.log(self.monitor.removesuffix("_epoch"), float(self.losses[self.current_epoch]), **self.options)
        return -self.weight

    def on_train_epoch_end(self):
        if not self.options:
            self.log(self.monitor, float(self.losses[self.current_epoch]))


class OfTrainingAlone(OfTraining):
    validation_step = LightningModule.validation_step


class Kill(Callback):
    """After a number of steps, in place of the next one, or of that batch of the epoch."""

    def __init__(self, step, batch=None):
        self.step, self.batch = step, batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step and self.batch in (None, batch_idx):
            raise ConnectionAbortedError("killed")


def fit(folder, module, *callbacks, ckpt_path=None, data=None, validation=True, **options):
    trainer = Trainer(
        callbacks=[
            *(run_checkpoints(folder, module) if options.get("enable_checkpointing", True) else []),
            *callbacks,
            *(StepSeed(), ValidateAtEnd(), ExportBest(), RunResults(table_img_size=None)),
        ],
        default_root_dir=folder,
        **{"logger": False, "accelerator": "cpu", "max_epochs": 2} | options,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.zeros(BATCHES)))
    loaders = (loader, loader if validation else None) if data is None else ()
    trainer.fit(module, *loaders, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def results(folder):
    """results.json, after a look whether all files agree."""
    found = json.loads((folder / "results.json").read_text())
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == found["best_step"]
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["best_step"], progress["best_epoch"]) == (found["best_step"], found["best_epoch"])
    assert found["checkpoint"] == "checkpoints/best.ckpt"
    assert best["state_dict"]["weight"] == found["best_step"]
    return found


def history(folder):
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return last["callbacks"]["RunResults"]["history"]


def place(found):
    return found["best_epoch"], found["best_step"], found["score"]


def scores(**given):
    """50, but for the steps given as ``at3=90``."""
    return [given.get(f"at{step}", 50) for step in range(40)]


class TestSeveralValidations:
    """An epoch has 4 steps."""

    @pytest.mark.parametrize(
        ("options", "given", "best"),
        [
            ({}, {"at4": 80}, (1, 4, 80)),
            ({"val_check_interval": 0.5}, {"at6": 90, "at8": 80}, (2, 6, 90)),
            ({"val_check_interval": 3, "check_val_every_n_epoch": None}, {"at3": 90}, (1, 3, 90)),
            ({"val_check_interval": 3, "check_val_every_n_epoch": None}, {"at8": 90}, (2, 8, 90)),  # at the end
            ({"max_epochs": -1, "max_steps": 3}, {"at3": 70}, (1, 3, 70)),
            ({"max_epochs": -1, "max_steps": 6}, {"at6": 70}, (2, 6, 70)),
            ({"max_epochs": 3, "check_val_every_n_epoch": 2}, {"at12": 70}, (3, 12, 70)),
            ({"max_epochs": 1, "check_val_every_n_epoch": 5}, {}, (1, 4, 50)),
            ({}, {"at4": float("nan")}, (2, 8, 50)),
            ({"limit_val_batches": 0}, {}, (2, 8, None)),
            ({"limit_train_batches": 2, "accumulate_grad_batches": 2}, {"at2": 70}, (2, 2, 70)),
        ],
    )
    def test_each_counts_and_the_end_is_validated(self, tmp_path, options, given, best):
        (tmp_path / "best.safetensors").touch()  # exported from a former best
        steps = []

        class Watch(Callback):
            def on_validation_end(self, trainer, module):
                steps.extend([] if trainer.sanity_checking else [trainer.global_step])

        fit(tmp_path, Counter(scores(**given)), Watch(), **options)
        assert len(steps) == len(set(steps)), "no step is validated twice"
        assert not (tmp_path / "best.safetensors").exists()
        assert place(results(tmp_path)) == best
        last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
        assert last["state_dict"]["weight"] == last["global_step"]
        assert best[2] is None or history(tmp_path)[-1]["step"] == last["global_step"]

    @pytest.mark.parametrize("kill", [3, 6])
    @pytest.mark.parametrize(
        "options",
        [
            {"val_check_interval": 0.5},
            {"val_check_interval": 3, "check_val_every_n_epoch": None},
            {},
            {"max_steps": 100},
            {"max_steps": 100, "val_check_interval": 0.5},
        ],
    )
    def test_a_resumed_run_counts_no_validation_twice(self, tmp_path, kill, options):
        given = scores(at2=60, at3=55, at4=70, at6=65, at8=40)
        fit(tmp_path / "straight", Counter(given), **options)
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path / "killed", Counter(given), Kill(kill), **options)
        path = checkpoints_newest_first(tmp_path / "killed")
        resumed = fit(tmp_path / "killed", Counter(given), ckpt_path=path[0] if path else None, **options)
        assert resumed.global_step == 8
        assert place(results(tmp_path / "killed")) == place(results(tmp_path / "straight"))
        histories = [history(tmp_path / name) for name in ("straight", "killed")]
        assert histories[0] == histories[1]

    def test_one_between_the_batches_of_a_step_is_no_place_to_go_on_from(self, tmp_path):
        """A checkpoint keeps no gradients: the weight would come to 3.5."""
        options = {"accumulate_grad_batches": 2, "val_check_interval": 3}
        given = scores(at1=70, at3=80)
        fit(tmp_path / "straight", Counter(given), **options)
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path / "killed", Counter(given), Kill(3, batch=3), **options)
        fit(tmp_path / "killed", Counter(given), ckpt_path=tmp_path / "killed/checkpoints/last.ckpt", **options)
        assert place(results(tmp_path / "killed")) == place(results(tmp_path / "straight")) == (2, 3, 80)
        assert history(tmp_path / "killed") == history(tmp_path / "straight")
        last = torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)
        assert last["state_dict"]["weight"] == last["global_step"] == 4

    def test_a_run_that_ended_before_its_validation_validates_when_it_is_resumed(self, tmp_path):
        own = ModelCheckpoint(tmp_path / "checkpoints", "{step}", every_n_train_steps=4, save_top_k=-1)
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path, Counter(scores(at8=90)), own, RaiseAtEnd(), check_val_every_n_epoch=5)
        fit(
            tmp_path, Counter(scores(at8=90)), ckpt_path=tmp_path / "checkpoints/step=8.ckpt", check_val_every_n_epoch=5
        )
        assert place(results(tmp_path)) == (2, 8, 90)

    @pytest.mark.parametrize("options", [{"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2, "max_steps": 8}])
    def test_any_step_that_a_callback_saves_is_one_to_go_on_from(self, tmp_path, options):
        """Lightning by itself leaves out the validation after that step, and the count of an epoch that it ends."""
        given = scores(at2=60, at4=70, at6=65, at8=80)
        own = ModelCheckpoint(tmp_path / "own", "{step}", every_n_train_steps=2, save_top_k=-1)
        fit(tmp_path / "straight", Counter(given), own, **options)
        for step in (2, 4, 6):
            folder = tmp_path / f"from-{step}"
            trainer = fit(folder, Counter(given), ckpt_path=tmp_path / f"own/step={step}.ckpt", **options)
            assert history(folder) == history(tmp_path / "straight")
            assert (results(folder)["epochs"], trainer.global_step) == (2, 8)

    def test_a_run_killed_after_its_last_step_says_the_same(self, tmp_path, recwarn):
        options = {"max_epochs": 3, "max_steps": 6}
        fit(tmp_path / "straight", Counter(scores(at6=90)), **options)
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path / "killed", Counter(scores(at6=90)), RaiseAtEnd(), **options)
        path = tmp_path / "killed/checkpoints/last.ckpt"
        fit(tmp_path / "killed", Counter(scores(at6=90)), ckpt_path=path, **options)
        for name in ("straight", "killed"):
            assert place(results(tmp_path / name)) == (2, 6, 90)
            assert results(tmp_path / name)["epochs"] == 2
        assert not [warning for warning in recwarn if "is not empty" in str(warning.message)]  # of the checkpoints

    def test_a_trial_leaves_nothing(self, tmp_path):
        fit(tmp_path, Counter(scores()), fast_dev_run=True)
        assert list(tmp_path.iterdir()) == []


class RaiseAtEnd(Callback):
    def on_train_end(self, *_):
        raise ConnectionAbortedError("killed")


class TestMovedFolder:
    def test_the_best_score_travels(self, tmp_path):
        fit(tmp_path / "a", Counter(scores(at4=90)))
        (tmp_path / "a").rename(tmp_path / "b")
        shutil.copytree(tmp_path / "b", tmp_path / "a")  # another one of the old name
        (tmp_path / "a/checkpoints/best.ckpt").write_bytes(b"")
        fit(tmp_path / "b", Counter(scores()), ckpt_path=tmp_path / "b/checkpoints/last.ckpt")  # nothing left to train
        assert place(results(tmp_path / "b")) == (1, 4, 90)
        fit(tmp_path / "b", Counter(scores(at12=60)), ckpt_path=tmp_path / "b/checkpoints/last.ckpt", max_epochs=3)
        assert place(results(tmp_path / "b")) == (1, 4, 90)
        fit(tmp_path / "b", Counter(scores(at16=95)), ckpt_path=tmp_path / "b/checkpoints/last.ckpt", max_epochs=4)
        assert place(results(tmp_path / "b")) == (4, 16, 95)

    @pytest.mark.parametrize("lost", ["gone", "half", "another"])
    def test_a_best_that_is_not_here_is_none(self, tmp_path, lost):
        fit(tmp_path / "a", Counter(scores(at4=90)))
        best = tmp_path / "a/checkpoints/best.ckpt"
        if lost == "gone":
            best.unlink()
        elif lost == "half":
            best.write_bytes(best.read_bytes()[:500])
        else:
            shutil.copy(tmp_path / "a/checkpoints/last.ckpt", best)
        fit(tmp_path / "a", Counter(scores(at12=60)), ckpt_path=tmp_path / "a/checkpoints/last.ckpt", max_epochs=3)
        assert place(results(tmp_path / "a")) == (3, 12, 60)

    def test_a_run_that_goes_on_in_another_folder(self, tmp_path):
        fit(tmp_path / "a", Counter(scores(at4=90)))
        fit(tmp_path / "b", Counter(scores(at12=60)), ckpt_path=tmp_path / "a/checkpoints/last.ckpt", max_epochs=3)
        assert place(results(tmp_path / "b")) == (3, 12, 60)
        assert place(results(tmp_path / "a")) == (1, 4, 90)

    @pytest.mark.parametrize("lost", [False, True])
    def test_with_no_step_left_and_no_best_the_end_is_validated(self, tmp_path, lost):
        fit(tmp_path / "a", Counter(scores(at4=90)))
        if lost:
            (tmp_path / "a/checkpoints/best.ckpt").unlink()
        folder = tmp_path / ("a" if lost else "b")
        fit(folder, Counter(scores(at8=60)), ckpt_path=tmp_path / "a/checkpoints/last.ckpt")
        assert place(results(folder)) == (2, 8, 60)

    def test_a_failed_resume_leaves_the_folder_as_it_was(self, tmp_path):
        fit(tmp_path, Counter(scores(at4=90)))
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        module = Counter(scores())
        module.configure_optimizers = lambda: torch.optim.SGD(
            [{"params": [module.weight]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=1.0
        )
        with pytest.raises(ValueError, match="group"):
            fit(tmp_path, module, ckpt_path=tmp_path / "checkpoints/last.ckpt", max_epochs=3)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class TestOwnCheckpoint:
    @pytest.mark.parametrize(
        "settings",
        [
            {"monitor": "val/top1", "mode": "max", "save_weights_only": True},
            {"monitor": "val/top1", "mode": "min", "filename": "best"},
            {"every_n_train_steps": 1, "save_last": True, "save_weights_only": True},
            {"filename": "last", "every_n_train_steps": 1, "save_weights_only": True},
            {"filename": "last", "every_n_train_steps": 1, "enable_version_counter": False},
            {"save_top_k": -1, "save_last": "link"},
        ],
    )
    def test_ours_stay_beside_it(self, tmp_path, settings):
        own = ModelCheckpoint(tmp_path / "checkpoints", **settings)
        given = scores(at4=90, at8=20)
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path, Counter(given), own, Kill(6))
        last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
        assert last["optimizer_states"]
        resume = checkpoints_newest_first(tmp_path)[0]
        own = ModelCheckpoint(tmp_path / "checkpoints", **settings)
        fit(tmp_path, Counter(given), own, ckpt_path=resume)
        assert place(results(tmp_path)) == (1, 4, 90)
        assert own.best_model_path

    def test_one_in_another_folder_keeps_its_names(self, tmp_path):
        own = ModelCheckpoint(tmp_path / "elsewhere", filename="best", save_last=True)
        fit(tmp_path, Counter(scores(at4=90)), own)
        assert {path.name for path in (tmp_path / "elsewhere").iterdir()} >= {"best.ckpt", "last.ckpt"}

    def test_export_is_of_our_best(self, tmp_path):
        own = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss", filename="best")
        fit(tmp_path, small_task(), own, data=Data())
        assert read_card(tmp_path / "best.safetensors").model == "test_efficientnet"
        assert json.loads((tmp_path / "results.json").read_text())["top1"] is not None


class TestForeignModules:
    def test_one_without_a_validation(self, tmp_path, caplog):
        with caplog.at_level("INFO"):
            fit(tmp_path, WithoutValidation())
        assert place(results(tmp_path)) == (2, 8, None)
        assert "no val/top1 that tells the best" in caplog.text
        assert "no best.safetensors: checkpoints of a WithoutValidation have no model card" in caplog.text

    def test_one_without_validation_data(self, tmp_path):
        fit(tmp_path, Counter(), validation=False)
        assert place(results(tmp_path)) == (2, 8, None)

    def test_one_that_logs_something_else(self, tmp_path):
        module = Counter(scores(at4=90))
        module.metric = "val_acc"
        fit(tmp_path, module)
        assert place(results(tmp_path)) == (2, 8, None)

    @pytest.mark.parametrize(
        ("monitor", "mode", "best"),
        [
            ("val/loss", None, (1, 4, 20)),
            ("val/loss", "max", (2, 8, 50)),
            ("x", "min", (1, 4, 20)),
            ("x", None, (2, 8, 50)),
        ],
    )
    def test_one_that_names_its_metric(self, tmp_path, monitor, mode, best):
        module = Counter(scores(at4=20))
        module.metric = module.monitor = monitor
        module.monitor_mode = mode
        fit(tmp_path, module)
        assert place(results(tmp_path)) == best

    @pytest.mark.parametrize(
        ("kind", "name", "logged", "losses"),
        [
            (OfTraining, "train_loss", {"on_step": False, "on_epoch": True}, (5, 2, 4)),
            (OfTraining, "train_loss", {"on_step": True, "on_epoch": True}, (5, 4, 2)),
            (OfTraining, "train_loss_epoch", {"on_step": True, "on_epoch": True}, (5, 2, 4)),
            (OfTraining, "train_loss", {}, (2, 5, 4)),  # its first epoch is not validated
            (OfTrainingAlone, "train_loss", {"on_step": False, "on_epoch": True}, (5, 4, 2)),
            (OfTrainingAlone, "train_loss", {}, (5, 2, 4)),
        ],
    )
    def test_one_whose_metric_is_of_the_training(self, tmp_path, kind, name, logged, losses):
        module = kind(scores(at4=1, at8=2, at12=3))
        module.monitor, module.options, module.losses = name, logged, losses
        options = {"max_epochs": 3, "check_val_every_n_epoch": 2 if losses[0] == 2 else 1}
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path, module, Kill(9), **options)
        module.weight.data.zero_()
        fit(tmp_path, module, ckpt_path=tmp_path / "checkpoints/last.ckpt", **options)
        best = losses.index(2) + 1
        assert place(results(tmp_path)) == (best, 4 * best, 2)
        validated = kind is OfTraining and losses[0] != 2
        assert results(tmp_path)["metrics"].get("val/top1") == (best if validated else None)

    def test_without_checkpoints(self, tmp_path):
        fit(tmp_path, Counter(scores(at4=90)), enable_checkpointing=False)
        assert json.loads((tmp_path / "results.json").read_text())["best_step"] == 4

    def test_an_export_that_fails_costs_no_results(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("no such thing\nat all")

        monkeypatch.setattr("mobilemamba.training.callbacks.export.convert", fail)
        with pytest.warns(UserWarning, match=r"no best.safetensors: no such thing; the weights are in .*best\.ckpt$"):
            fit(tmp_path, small_task(), data=Data(), max_epochs=1)
        assert (tmp_path / "results.json").exists()
