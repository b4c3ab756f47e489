"""Resuming draws what an uninterrupted run draws; a finished run leaves its numbers."""
# ruff: noqa: NPY002  the legacy generator is what is seeded

import json
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mobilemamba.tasks import ClassificationTask
from mobilemamba.training import callbacks
from mobilemamba.training.callbacks import EpochSeed, RunResults

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class Noisy(Dataset):
    """Twelve random pictures, each augmented with all three generators."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return x * (1 + random.random()) + float(np.random.rand()) + torch.rand(1), index % 5


class EpochSampler(Sampler):
    """An order that depends on the epoch alone."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 12

    def __iter__(self):
        return iter(torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Data(LightningDataModule):
    name = "noise"
    num_classes = 5
    img_size = 32

    def __init__(self, workers=0, **options):
        super().__init__()
        self.options = {"num_workers": workers} | options

    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=4, sampler=EpochSampler(), **self.options)

    def val_dataloader(self):
        return DataLoader(Noisy(), batch_size=5, **self.options)


class Net(LightningModule):
    """Small, with dropout; remembers what it was fed."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 5))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch[1].tolist(), batch[0].sum().item()))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        torch.rand(batch_idx + 1)  # validation may draw too

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class DrawAtStart(Callback):
    """Something that a resumed run does and another does not."""

    def on_train_start(self, trainer, pl_module):
        if trainer.ckpt_path:
            torch.rand(17)


def fit(folder, max_epochs, *, module=Net, data=None, seed=0, extra=None, ckpt_path=None, **saving):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = module()
    saver = ModelCheckpoint(folder, save_last=True, **saving)
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[*(extra if extra is not None else [EpochSeed(0)]), DrawAtStart(), saver],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, data or Data(), ckpt_path=ckpt_path)
    return trainer, model


def small_task():
    return ClassificationTask("test_efficientnet", num_classes=5, drop_path_rate=0.3, warmup_epochs=0)


class StopAfter(Callback):
    """A kill after the checkpoint of an epoch, the schedule still being for the whole training."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise ConnectionAbortedError("killed")


def killed_and_resumed(folder, after, **options):
    extra = options.pop("extra", (EpochSeed(0),))
    with pytest.raises(ConnectionAbortedError):
        fit(folder, 3, extra=(*extra, StopAfter(after)), **options)
    return fit(folder, 3, seed=99, extra=extra, ckpt_path=str(folder / "last.ckpt"), **options)


def same_weights(first, second):
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in weights)


class TestEpochSeed:
    @pytest.mark.parametrize("after", [1, 2])
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("saving", [{}, {"save_on_train_epoch_end": True}], ids=["after-val", "after-train"])
    def test_resumed_equals_uninterrupted_bit_for_bit(self, tmp_path, after, workers, saving):
        _, straight = fit(tmp_path / "a", 3, data=Data(workers), **saving)
        _, resumed = killed_and_resumed(tmp_path / "b", after, data=Data(workers), **saving)
        assert resumed.seen == [entry for entry in straight.seen if entry[0] >= after]
        assert same_weights(straight, resumed)

    def test_with_the_task_and_drop_path(self, tmp_path):
        _, straight = fit(tmp_path / "a", 3, module=small_task)
        _, resumed = killed_and_resumed(tmp_path / "b", 2, module=small_task)
        assert same_weights(straight, resumed)

    def test_without_it_they_differ(self, tmp_path):
        """The comparison above can fail."""
        _, straight = fit(tmp_path / "a", 3, extra=())
        _, resumed = killed_and_resumed(tmp_path / "b", 2, extra=())
        assert not same_weights(straight, resumed)

    def test_epochs_and_seeds_draw_differently(self, tmp_path):
        _, first = fit(tmp_path / "a", 2)
        _, second = fit(tmp_path / "b", 2, extra=(EpochSeed(1),))
        sums = [total for model in (first, second) for _, _, total in model.seen]
        assert len(set(sums)) == len(sums) == 12

    def test_takes_the_seed_of_seed_everything(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_GLOBAL_SEED", "5")
        _, first = fit(tmp_path / "a", 1, extra=(EpochSeed(),))
        _, second = fit(tmp_path / "b", 1, seed=1, extra=(EpochSeed(5),))
        assert first.seen == second.seen

    def test_persistent_workers_follow_the_epoch_too(self, tmp_path):
        data = {"workers": 1, "persistent_workers": True}
        _, straight = fit(tmp_path / "a", 3, data=Data(**data))
        _, resumed = killed_and_resumed(tmp_path / "b", 2, data=Data(**data))
        order = [labels for epoch, labels, _ in straight.seen if epoch == 2]
        assert [labels for _, labels, _ in resumed.seen] == order


@pytest.fixture
def quick_measure(monkeypatch):
    """Counting and timing have tests of their own."""
    monkeypatch.setattr(callbacks, "measure_network", lambda *_: {"img_size": 224, "flops": 7})


@pytest.mark.usefixtures("quick_measure")
class TestRunResults:
    def test_a_finished_run_leaves_its_numbers(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_GLOBAL_SEED", "3")
        results = RunResults(tmp_path / "run")
        trainer, _ = fit(tmp_path / "run", 2, module=small_task, extra=(results,))
        written = json.loads((tmp_path / "run" / "results.json").read_text())
        assert written["top1_last"] == pytest.approx(float(trainer.callback_metrics["val/top1"]))
        assert written["top5"] == 100
        best = max(results.history, key=lambda entry: entry["val/top1"])
        assert (written["top1"], written["best_epoch"]) == (best["val/top1"], best["epoch"])
        expected = {
            "epochs": 2,
            "seed": 3,
            "resumes": 0,
            "data": "noise",
            "num_classes": 5,
            "img_size": 32,
            "train_pictures": 12,
            "val_pictures": 12,
            "total_batch_size": 4,
            "measured": {"img_size": 224, "flops": 7},
            "torch": torch.__version__,
        }
        assert {key: written[key] for key in expected} == expected
        assert (tmp_path / "run" / written["checkpoint"]).is_file()
        assert written["hours"] > 0
        assert written["peak_mem_gib"] > 0
        assert json.loads((tmp_path / "run" / "measure.json").read_text())["flops"] == 7
        progress = json.loads((tmp_path / "run" / "progress.json").read_text())
        assert (progress["epoch"], progress["max_epochs"], progress["top1"]) == (2, 2, written["top1_last"])

    def test_a_killed_run_has_none_and_goes_on_counting(self, tmp_path):
        folder = tmp_path / "run"

        def start(kill_at=None):
            results = RunResults(folder)
            last = folder / "last.ckpt"
            extra = (results, *([StopAfter(kill_at)] if kill_at is not None else []))
            fit(folder, 3, module=small_task, extra=extra, ckpt_path=str(last) if last.exists() else None)
            return results

        for kill_at in (1, 1, 2):  # the second dies before it saved anything
            with pytest.raises(ConnectionAbortedError):
                start(kill_at)
            assert not (folder / "results.json").exists()
            progress = json.loads((folder / "progress.json").read_text())
        assert progress["resumes"] == 2
        finished = start()
        assert [entry["epoch"] for entry in finished.history] == [1, 2, 3]
        written = json.loads((folder / "results.json").read_text())
        assert (written["resumes"], written["epochs"]) == (3, 3)

        (folder / "results.json").unlink()  # killed between the last checkpoint and the results
        start()
        again = json.loads((folder / "results.json").read_text())
        for key in ("top1", "top5", "best_epoch", "top1_last", "epochs", "train_pictures", "val_pictures"):
            assert again[key] == written[key], key

    def test_ctrl_c_leaves_no_results(self, tmp_path):
        class CtrlC(Callback):
            def on_train_batch_start(self, *_):
                raise KeyboardInterrupt

        with pytest.raises(SystemExit):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(tmp_path), CtrlC()))
        assert not (tmp_path / "results.json").exists()

    def test_a_new_run_takes_an_older_one_s_results_away(self, tmp_path):
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ConnectionAbortedError):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(tmp_path), StopAfter(0)))
        assert not (tmp_path / "results.json").exists()

    def test_a_limited_validation_says_on_how_many_pictures(self, tmp_path):
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=1,
            limit_train_batches=2,
            callbacks=[RunResults(tmp_path)],
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accelerator="cpu",
        )
        trainer.fit(small_task(), Data())
        written = json.loads((tmp_path / "results.json").read_text())
        assert (written["train_pictures"], written["val_pictures"]) == (8, 5)
        assert written["checkpoint"] is None

    def test_a_network_that_cannot_be_measured_is_trained_all_the_same(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise AssertionError("Input height (224) doesn't match model (384).")

        monkeypatch.setattr(callbacks, "measure_network", refuse)
        with pytest.warns(UserWarning, match="table_img_size"):
            fit(tmp_path, 1, module=small_task, extra=(RunResults(tmp_path),))
        assert json.loads((tmp_path / "results.json").read_text())["measured"] is None
