"""The base of the tasks, under a task of another kind: dicts for targets, and a score that is better the less it is."""

import json

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.utils.data import DataLoader

from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing
from mobilemamba.models.predictor import Predictor
from mobilemamba.scores import Score
from mobilemamba.tasks import ClassificationTask, DetectionTask, SegmentationTask
from mobilemamba.tasks.base import Task
from mobilemamba.training.callbacks import RunResults, run_checkpoints
from mobilemamba.training.callbacks.sync_norms import SyncNorms
from mobilemamba.training.metrics import Metrics


class MeanError(Metrics):
    """Of the brightness that a picture is said to have."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def update(self, outputs, targets):
        self.errors += (outputs[:, 0] - targets["brightness"]).abs().tolist()

    def compute(self):
        error = torch.tensor(self.errors).mean()
        self.errors = []
        return {"error": error, "loss": error}


class Brightness(Task):
    """Tells how bright a picture is; takes none of the base's settings."""

    scores = (Score("error", "mean error", "min", digits=3, unit=""),)

    def __init__(self, width: int = 1) -> None:
        super().__init__(lr=0.05, reference_batch_size=4, warmup_epochs=0, ema_decay=0.5, weight_decay=0.0)
        self.keep_settings({"width": width})
        self.use_network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width)))

    def training_loss(self, images, targets):
        return (self(images)[:, 0] - targets["brightness"]).square().mean()

    def new_metrics(self):
        return MeanError()

    @property
    def model_card(self):
        return ModelCard("mobilemamba_t2", Preprocessing((8, 8), (0,) * 3, (1,) * 3), task="brightness")


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(16, 3, 8, 8, generator=generator) * torch.linspace(0, 1, 16).view(-1, 1, 1, 1)
    return DataLoader([(x, {"brightness": x.mean()}) for x in pictures], batch_size=4)


def test_another_kind_of_task_is_trained_and_judged_by_its_own_score(tmp_path, loader):
    torch.manual_seed(0)
    task = Brightness()
    assert task.monitor == "val/error_min"
    callbacks = [*run_checkpoints(tmp_path, task), RunResults(table_img_size=None)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(default_root_dir=tmp_path, callbacks=callbacks, max_epochs=3, **quiet).fit(task, loader, loader)
    results = json.loads((tmp_path / "results.json").read_text())
    errors = [entry["val/error_min"] for entry in callbacks[-1].history]
    assert results["score"] == min(errors) < errors[0]
    assert results["score"] == min(results["error"], results["error_ema"])
    assert results["scores"][0]["direction"] == "min"
    checkpoint = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert dict(checkpoint["hyper_parameters"]) == {"width": 1}, "what the class is built from, and no more"
    assert checkpoint["model_card"]["task"] == "brightness"
    assert type(task.predictor()) is Predictor, "it says of pictures what the network does"
    (found,) = Trainer(default_root_dir=tmp_path, **quiet).validate(task, loader, verbose=False)
    assert found["val/error"] == pytest.approx(results["error_last"], rel=1e-5)
    again = Brightness.load_from_checkpoint(tmp_path / "checkpoints/best.ckpt")
    assert torch.equal(again.model[2].weight, checkpoint["state_dict"]["model.2.weight"])


class OneByOne(Brightness):
    """Takes pictures of several sizes."""

    def evaluate(self, network, images):
        return torch.cat([super(OneByOne, self).evaluate(network, image[None]) for image in images])


def test_pictures_of_several_sizes_are_evaluated(tmp_path):
    pictures = [torch.full((3, 4 + i, 8), i / 4) for i in range(3)]
    loader = DataLoader([(x, x.mean()) for x in pictures], batch_size=3, collate_fn=together)
    task = OneByOne()
    torch.nn.init.ones_(task.model[2].weight)
    torch.nn.init.zeros_(task.model[2].bias)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    (found,) = Trainer(default_root_dir=tmp_path, **quiet).validate(task, loader, verbose=False)
    assert found["val/error"] == pytest.approx(0.5), "of three channels, a sum of three means: off by 0, 0.5 and 1"


def together(items):
    return [picture for picture, _ in items], {"brightness": torch.stack([mean for _, mean in items])}


class Watch(Callback):
    """Keeps the weights and the gradients of each step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append([(p.detach().clone(), p.grad.clone()) for p in pl_module.model.parameters()])


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5])
def test_the_gradient_of_each_step_is_the_mean_over_its_batches(tmp_path, loader, batches):
    task, watch = Brightness(), Watch()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"accumulate_grad_batches": batches, "max_epochs": 2, "enable_checkpointing": False}
    Trainer(default_root_dir=tmp_path, callbacks=[watch], **quiet, **options).fit(task, loader)
    given = list(loader)
    in_steps = 2 * [given[start : start + batches] for start in range(0, len(given), batches)]
    for in_step, found in zip(in_steps, watch.steps, strict=True):
        for parameter, (value, _) in zip(task.model.parameters(), found, strict=True):
            parameter.data.copy_(value)
        loss = torch.stack([task.training_loss(*batch) for batch in in_step]).mean()
        for expected, (_, gradient) in zip(torch.autograd.grad(loss, task.model.parameters()), found, strict=True):
            torch.testing.assert_close(gradient, expected)


class Sized(LightningDataModule):
    def __init__(self, data, batch_size):
        super().__init__()
        self.data, self.batch_size = data, batch_size

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=self.batch_size)


@pytest.mark.parametrize(("finder", "batch_size"), [(LearningRateFinder, 2), (BatchSizeFinder, 8)])
def test_what_lightning_finds_is_what_the_schedule_uses(tmp_path, monkeypatch, loader, finder, batch_size):
    monkeypatch.setattr("lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda *_, **__: 0.02)
    options = {"num_training_steps": 3} if finder is LearningRateFinder else {"init_val": 8, "max_trials": 1}
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[finder(**options)],
        limit_val_batches=0,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    task = Brightness()
    trainer.fit(task, datamodule=Sized(loader.dataset, batch_size=2))
    peak = 0.02 if finder is LearningRateFinder else 0.05 * batch_size / 4
    assert task.hparams["lr"] == pytest.approx(peak * 4 / batch_size), "for the reference of 4 pictures"
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == pytest.approx([peak])
    # It ends at the minimum, after as many steps as there are.
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * peak)


def test_each_task_keeps_the_activations_of_norms_that_a_trainer_synchronises():
    """Also where the trainer is made by hand; one that synchronises in a way of its own does so."""
    small = {"name": "mobilemamba_t2", "arch": ArchOverrides(embed_dims=(8, 8, 8), depths=(1, 1, 1))}
    dense = {**small, "num_classes": 2, "head_dim": 8}
    tasks = [Brightness(), ClassificationTask(**small), SegmentationTask(**dense), DetectionTask(**dense)]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    own = type("Own", (TorchSyncBatchNorm,), {})
    for task in tasks:
        for plugins, expected in (([], SyncNorms), ([own()], own)):
            task.trainer = Trainer(strategy="ddp", sync_batchnorm=not plugins, plugins=plugins, **quiet)
            task.setup("validate")
            assert type(task.trainer.strategy._layer_sync) is expected
    task.trainer = Trainer(**quiet)
    task.setup("validate")
