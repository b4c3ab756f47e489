"""Metrics over all pictures of an evaluation, exact for any batch size and any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric

from mobilemamba.data.sampling import IGNORED
from mobilemamba.scores import Score
from mobilemamba.training.confusion import ConfusionCounts


class DeviceMean(MeanMetric):
    """Weighted mean that ignores NaN; unlike torchmetrics' own, it does not wait for the device at each update."""

    def update(self, value: Tensor, weight: Tensor | float = 1.0) -> None:  # type: ignore[override]  # no numbers
        """Adds values of any shape, with weights of the same shape or a single weight."""
        counted = ~value.isnan() * weight
        self.mean_value += (value.to(self.dtype) * counted).masked_fill(counted == 0, 0).sum()
        self.weight += counted.sum()


class Metrics(nn.Module):
    """Base class for the metrics of one network.

    Attributes:
        counts: Confusion counts of the last result, as :meth:`ConfusionCounts.compute` returns them; None if there are
            no classes.
    """

    counts: Tensor | None = None

    def update(self, outputs: Any, targets: Any) -> None:
        """Adds a batch of network outputs and their targets."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """Returns the task's scores and ``loss`` by their keys, over all processes; then resets."""
        raise NotImplementedError

    def changed(self, outputs: Any, others: Any, targets: Any) -> Tensor | None:
        """Counts the items of a batch for which two networks predict different classes; ignored items do not count.

        Returns None if predictions are continuous values, which always differ slightly.
        """
        return None


class ClassificationMetrics(Metrics):
    """Top-1 and top-5 accuracy in percent, and the mean cross entropy without label smoothing.

    Pictures labelled ``IGNORED``, which are repeated to give all processes equal shares, do not count. With fewer than
    5 classes, top-5 accepts any of them.
    """

    SCORES: ClassVar[tuple[Score, ...]] = (Score("top1", "top-1", share=True), Score("top5", "top-5", share=True))

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top1, self.top5, self.loss = DeviceMean(), DeviceMean(), DeviceMean()
        self._k = min(5, num_classes)
        self.confusion = ConfusionCounts(num_classes)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits (B, num_classes), class indices (B,) int64."""
        counted, logits, answer = targets != IGNORED, outputs.float(), outputs.argmax(1)
        among = (logits.topk(self._k).indices == targets[:, None]).any(1)
        self.top1.update((answer == targets).float(), counted)
        self.top5.update(among.float(), counted)
        self.loss.update(F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED), counted)
        self.confusion.update(answer, targets)  # also if no picture counts, so that all processes can gather

    def compute(self) -> dict[str, Tensor]:
        """Returns ``top1`` and ``top5`` in percent, and ``loss``, over all processes; then resets."""
        values = {"top1": 100 * self.top1.compute(), "top5": 100 * self.top5.compute(), "loss": self.loss.compute()}
        self.counts = self.confusion.compute()
        for metric in (self.top1, self.top5, self.loss, self.confusion):
            metric.reset()
        return values

    def changed(self, outputs: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Counts the pictures of a batch that two networks classify differently; arguments as for :meth:`update`."""
        return ((outputs.argmax(1) != others.argmax(1)) & (targets != IGNORED)).sum()


class Comparison(nn.Module):
    """Metrics of several networks on the same pictures: the raw one, its average, and one with folded norms.

    They are called ``raw``, ``ema`` and ``fused``.

    Args:
        metrics: Creates the metrics of one network.
        headline: Score that decides between the raw and the averaged network.
    """

    SUFFIXES: ClassVar[dict[str, str]] = {"raw": "", "ema": "_ema", "fused": "_fused"}

    def __init__(self, metrics: Callable[[], Metrics], headline: Score) -> None:
        super().__init__()
        self.headline = headline
        self.metrics: dict[str, Metrics] = {}
        for name in self.SUFFIXES:
            self.metrics[name] = metrics()
            self.add_module(f"of_{name}", self.metrics[name])
        self.changed = SumMetric(nan_strategy="disable")  # a check would wait for the device at each update

    def reset(self) -> None:
        """Forgets what an evaluation that did not end has added.

        Also creates the counts anew, as processes that ``ddp_spawn`` starts share the memory of those that they got.
        """
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()

    def update(self, outputs: dict[str, Any], targets: Any) -> None:
        """Adds a batch.

        Args:
            outputs: Network's name -> its output for the batch.
            targets: Targets as the task's :class:`Metrics` take them.
        """
        for name, of_network in outputs.items():
            self.metrics[name].update(of_network, targets)
        if "fused" in outputs:
            changed = self.metrics["raw"].changed(outputs["raw"], outputs["fused"], targets)
            if changed is not None:
                self.changed.update(changed)

    def compute(self, names: Iterable[str], prefix: str) -> dict[str, Tensor]:
        """Returns the metrics of these networks over all processes; then resets.

        Args:
            names: The networks that were given to :meth:`update`.
            prefix: ``"val"`` or ``"test"``.

        Returns:
            ``val/KEY`` of every score and ``val/loss``, each with the network's suffix; if there is an average,
            ``val/top1_max`` (or ``_min`` if smaller is better), the better headline of raw and average; if there is a
            network with folded norms, ``val/fused_changed``, the number of items that it classifies differently.
        """
        found: dict[str, Tensor] = {}
        names = list(names)
        for name, metrics in self.metrics.items():
            metrics.counts = None
            if name in names:
                suffix = self.SUFFIXES[name]
                found |= {f"{prefix}/{metric}{suffix}": value for metric, value in metrics.compute().items()}
        headline = f"{prefix}/{self.headline.key}"
        if "ema" in names:
            better = torch.maximum if self.headline.direction == "max" else torch.minimum
            found[f"{headline}_{self.headline.direction}"] = better(found[headline], found[f"{headline}_ema"])
        if self.changed.update_called:
            found[f"{prefix}/fused_changed"] = self.changed.compute()
            self.changed.reset()
        return found
