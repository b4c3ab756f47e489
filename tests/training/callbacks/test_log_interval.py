"""Small data sets get their learning rate logged too."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from mobilemamba.training.callbacks import LogInterval


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        loss = self.net(batch[0]).sum()
        self.log("step_loss", loss)
        return loss

    def configure_optimizers(self):
        self.trainer.estimated_stepping_batches  # noqa: B018  has the loader made before anything else
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("batches", "options", "interval"),
    [
        (3, {}, 1),
        (40, {}, 4),
        (40, {"accumulate_grad_batches": 4}, 1),
        (40, {"max_epochs": -1, "max_steps": 5}, 1),
        (600, {"limit_train_batches": 0.9}, 50),
        (3, {"barebones": True}, 0),
    ],
)
def test_interval_follows_the_epoch(tmp_path, batches, options, interval):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    if "barebones" not in options:
        quiet["logger"] = CSVLogger(tmp_path, name="", version="")
    trainer = Trainer(callbacks=[LogInterval()], accelerator="cpu", **{"max_epochs": 1, **quiet} | options)
    loader = DataLoader(TensorDataset(torch.zeros(batches, 1)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*logging interval.*")
        trainer.fit(Net(), loader)
    assert trainer.log_every_n_steps == interval
    if interval:
        assert "step_loss" in (tmp_path / "metrics.csv").read_text()
