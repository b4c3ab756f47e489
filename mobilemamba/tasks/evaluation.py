"""How a classifier is validated, tested and asked: the steps that need no training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobilemamba.models import fuse_norms
from mobilemamba.training.evaluation import Comparison

#: For the log of a number that all processes have computed together; Lightning would warn of it otherwise.
SAME_EVERYWHERE: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}


class EvaluationTask(LightningModule):
    """Validation, test and prediction of ``model``, of its average ``ema`` if there is one, and of its fused form.

    Outside a training the network with folded norms is evaluated beside the raw one. See
    :class:`~mobilemamba.training.evaluation.Comparison` for what is logged.

    Attributes:
        model: The network, pictures (B, ``in_chans``, H, W) to logits (B, ``num_classes``).
        ema: Its exponential moving average.
    """

    model: nn.Module
    ema: ModelEmaV3 | None

    def configure_metrics(self) -> None:
        """Sets the accuracies of every network that may be evaluated."""
        self.comparison = Comparison(self.hparams["num_classes"])

    @property
    def confusion(self) -> dict[str, Tensor]:
        """Network's name (``raw``, ``ema``, ``fused``) -> (n, 3): class, answer, how often; of the last evaluation."""
        return self.comparison.counts

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of pictures (B, in_chans, H, W)."""
        return self.model(self.in_layout(x))

    def in_layout(self, x: Tensor) -> Tensor:
        """Pictures (B, in_chans, H, W) in the network's memory layout."""
        return x.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else x

    def on_validation_epoch_start(self) -> None:
        """Chooses the networks to evaluate."""
        self._choose_evaluated()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Adds a batch to the validation's loss and accuracies."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracies over all batches."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Chooses the networks to evaluate."""
        self._choose_evaluated()

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Adds a batch to the test's loss and accuracies."""
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies over all batches."""
        self._log_metrics("test")

    def _choose_evaluated(self) -> None:
        self._evaluated: dict[str, nn.Module] = {"raw": self.model}
        if self.ema is not None:
            self._evaluated["ema"] = self.ema.module
        if self.trainer.state.fn != TrainerFn.FITTING:
            fused = fuse_norms(self.model)
            if _batch_norms(fused) < _batch_norms(self.model):  # else it is none of ours
                self._evaluated["fused"] = fused

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        x, target = batch
        x = self.in_layout(x)
        self.comparison.update({name: network(x).float() for name, network in self._evaluated.items()}, target)

    def _log_metrics(self, split: str) -> None:
        values = self.comparison.compute(self._evaluated, split)
        for name, value in values.items():
            self.log(name, value, prog_bar="top" in name, **SAME_EVERYWHERE)
        self._evaluated = {}

    def predict_step(self, batch: Any) -> dict[str, Tensor]:
        """What the network makes of a batch of pictures (B, in_chans, H, W), alone or first in a tuple.

        Returns:
            ``probabilities`` (B, num_classes) float32, and the k <= 5 likeliest classes first to last:
            ``top_probabilities`` (B, k) float32 and ``top_indices`` (B, k) int64.
        """
        x = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self(x).float().softmax(-1)
        top = probabilities.topk(min(5, self.hparams["num_classes"]))
        return {"probabilities": probabilities, "top_probabilities": top.values, "top_indices": top.indices}


def _batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())
