"""Small trainings with noise everywhere, killed and resumed, for the tests of the callbacks."""
# ruff: noqa: NPY002  the legacy generator is what is seeded

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mobilemamba.data import ImageDataModule
from mobilemamba.tasks import ClassificationTask
from mobilemamba.training.callbacks import StepSeed


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


class Data(ImageDataModule):
    name = "noise"
    class_names = tuple("abcde")
    mean = std = (0.5, 0.5, 0.5)
    interpolation, crop_pct = "bicubic", 0.875

    def __init__(self, workers=0, **options):
        super().__init__(img_size=32)
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


def fit(folder, max_epochs, *, module=Net, data=None, seed=0, extra=None, ckpt_path=None, max_steps=-1, **saving):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = module()
    saver = ModelCheckpoint(folder, save_last=True, **saving)
    trainer = Trainer(
        max_epochs=max_epochs,
        max_steps=max_steps,
        callbacks=[*(extra if extra is not None else [StepSeed()]), DrawAtStart(), saver],
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
    extra = options.pop("extra", (StepSeed(),))
    with pytest.raises(ConnectionAbortedError):
        fit(folder, 3, extra=(*extra, StopAfter(after)), **options)
    return fit(folder, 3, seed=99, extra=extra, ckpt_path=str(folder / "last.ckpt"), **options)


def same_weights(first, second):
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in weights)
