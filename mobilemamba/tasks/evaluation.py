"""The inference half of a task: the network's input, its model card, and its evaluation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mobilemamba.data import DataModule
from mobilemamba.data.base import data_of
from mobilemamba.models import ModelCard, Preprocessing, fuse_norms
from mobilemamba.models.fuse import count_batch_norms
from mobilemamba.models.predictor import Predictor, predictor_of
from mobilemamba.training.contract import TaskContract
from mobilemamba.training.metrics import Comparison

#: Arguments of ``log`` for a value that is already the same in all processes; without them Lightning would warn.
SAME_EVERYWHERE: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}


class EvaluatedTask(TaskContract, LightningModule):
    """Evaluates and describes a network.

    The network is evaluated, and its average if there is one. Outside of training, the network as ``predict`` runs it,
    with folded norms, is evaluated too. See :class:`~mobilemamba.training.metrics.Comparison` for what is logged.

    Attributes:
        ema: The network's exponential moving average, None for none.
        comparison: The metrics of all these networks.
    """

    ema: ModelEmaV3 | None
    comparison: Comparison

    # The network's input.

    def forward(self, x: Tensor) -> Any:
        """Returns the network's output for pictures (B, in_chans, H, W)."""
        return self.model(self.in_layout(x))

    def in_layout(self, x: Tensor) -> Tensor:
        """Returns pictures (B, in_chans, H, W) in the network's memory layout."""
        return x.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else x

    @property
    def data(self) -> DataModule | None:
        """The trainer's data module, if it is a :class:`DataModule`."""
        return data_of(self._trainer) if self._trainer is not None else None

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of pictures: that of the data module, or if there is none, that of the named model."""
        data = self.data
        return Preprocessing.of_model(self.hparams["name"]) if data is None else Preprocessing(**data.preprocessing)

    # Model card and predictor.

    @property
    def model_card(self) -> ModelCard:
        """The model card: the network's name and settings, and the classes and preprocessing of the data."""
        hparams, data = self.hparams, self.data
        return ModelCard(
            model=hparams["name"],
            preprocessing=self.preprocessing,
            num_classes=hparams["num_classes"],
            in_chans=hparams["in_chans"],
            arch=hparams["arch"],
            class_names=() if data is None else tuple(data.class_names),
            data="" if data is None else data.name,
            task=self.task,
        )

    def predictor(self) -> Predictor:
        """Returns a predictor, as ``predict`` uses it, with a copy of the network optimised for this device."""
        return predictor_of(self.model, self.model_card, self.device)

    # Evaluation.

    def evaluate(self, network: nn.Module, images: Any) -> Any:
        """Returns a network's output for the metrics; pictures of different sizes, for example, go one by one."""
        return network(self.in_layout(images))

    @property
    def monitor(self) -> str:
        """Name of the metric that selects the best epoch: the network's, or the better of it and its average."""
        headline = self.scores[0]
        return f"val/{headline.key}" + ("" if self.ema is None else f"_{headline.direction}")

    @property
    def better(self) -> str:
        """Name of the network with the better score in the last evaluation: ``raw``, or ``ema`` for the average."""
        return "ema" if self.average_is_better(self.trainer.callback_metrics) else "raw"

    @property
    def better_network(self) -> nn.Module:
        return self.ema.module if self.ema is not None and self.better == "ema" else self.model

    @property
    def confusion(self) -> Tensor | None:
        return self.comparison.metrics[self.better].counts

    def on_validation_epoch_start(self) -> None:
        self.comparison.reset()
        self._evaluated: dict[str, nn.Module] = {"raw": self.model}
        if self.ema is not None:
            self._evaluated["ema"] = self.ema.module
        if self.trainer.state.fn != TrainerFn.FITTING:
            # As predict runs it, but not under autocast, where its oneDNN layers would get inputs of another dtype.
            exact = self.trainer.precision == "32-true"
            fused = self.predictor().network if exact else fuse_norms(self.model)
            if count_batch_norms(fused) < count_batch_norms(self.model):  # otherwise it has none that can be folded
                self._evaluated["fused"] = fused

    def validation_step(self, batch: tuple[Any, Any]) -> None:
        images, targets = batch
        outputs = {name: self.evaluate(network, images) for name, network in self._evaluated.items()}
        self.comparison.update(outputs, targets)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: tuple[Any, Any]) -> None:
        self.validation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        shown = {f"{split}/{score.key}" for score in self.scores}
        for name, value in self.comparison.compute(self._evaluated, split).items():
            self.log(name, value, prog_bar=name in shown, **SAME_EVERYWHERE)
        self._evaluated = {}
