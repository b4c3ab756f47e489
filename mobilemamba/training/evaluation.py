"""Accuracy and loss over a set of pictures, exact whatever the batches and however many processes share them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from mobilemamba.data import IGNORED
from mobilemamba.training.confusion import ConfusionCounts


class EvalMetrics(nn.Module):
    """Top-1 and top-5 accuracy in percent, and the mean cross entropy without label smoothing.

    Pictures labelled ``IGNORED`` do not count: the repeats that fill up the processes' equal shares. With fewer than 5
    classes top-5 counts all of them.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", validate_args=False)
            for k in (1, 5)
        )
        self.loss = MeanMetric()
        self.confusion = ConfusionCounts(num_classes)
        #: Of the last result, as :meth:`ConfusionCounts.compute` gives them.
        self.counts: Tensor | None = None

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: logits (B, num_classes) float32, class indices (B,) int64."""
        counted = target != IGNORED
        logits, target = logits[counted], target[counted]
        if len(target):
            self.top1.update(logits, target)
            self.top5.update(logits, target)
            self.loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.confusion.update(logits.argmax(1), target)  # also of none, so that all processes have something to gather

    def compute(self) -> dict[str, Tensor]:
        """``top1`` and ``top5`` in percent, and ``loss``, over all processes; then starts anew."""
        values = {"top1": 100 * self.top1.compute(), "top5": 100 * self.top5.compute(), "loss": self.loss.compute()}
        self.counts = self.confusion.compute()
        for metric in (self.top1, self.top5, self.loss, self.confusion):
            metric.reset()
        return values


class Comparison(nn.Module):
    """Metrics of several networks on the same pictures: the raw one, its average (``ema``), its fused form.

    Args:
        num_classes: Outputs of each.
    """

    SUFFIXES: ClassVar[dict[str, str]] = {"raw": "", "ema": "_ema", "fused": "_fused"}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({name: EvalMetrics(num_classes) for name in self.SUFFIXES})
        self.changed = SumMetric()
        #: Network's name -> which classes it took for which, in the last result.
        self.counts: dict[str, Tensor] = {}

    def update(self, logits: dict[str, Tensor], target: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: Network's name -> (B, num_classes) float32.
            target: Class indices (B,) int64.
        """
        for name, of_network in logits.items():
            self.metrics[name].update(of_network, target)  # type: ignore[operator]
        if "fused" in logits:
            other = logits["raw"].argmax(1) != logits["fused"].argmax(1)
            self.changed.update((other & (target != IGNORED)).sum())

    def compute(self, names: Iterable[str], prefix: str) -> dict[str, Tensor]:
        """The metrics of these networks over all processes; then starts anew.

        Args:
            names: The networks that were given to :meth:`update`.
            prefix: ``"val"`` or ``"test"``.

        Returns:
            ``val/top1``, ``val/top5``, ``val/loss``, each with the network's suffix; ``val/top1_max``, the better of
            raw and average, where there is an average; ``val/fused_changed``, the number of pictures that the fused
            network puts into another class, where there is one.
        """
        found: dict[str, Tensor] = {}
        self.counts = {}
        for name in names:
            values = self.metrics[name].compute()  # type: ignore[operator]
            self.counts[name] = self.metrics[name].counts  # type: ignore[assignment]
            found |= {f"{prefix}/{metric}{self.SUFFIXES[name]}": value for metric, value in values.items()}
        if f"{prefix}/top1_ema" in found:
            found[f"{prefix}/top1_max"] = torch.maximum(found[f"{prefix}/top1"], found[f"{prefix}/top1_ema"])
        if f"{prefix}/top1_fused" in found:
            found[f"{prefix}/fused_changed"] = self.changed.compute()
            self.changed.reset()
        return found
