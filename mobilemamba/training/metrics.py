"""What an evaluation counts over all pictures, exact whatever the batches and however many processes share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from mobilemamba.data import IGNORED
from mobilemamba.scores import Score
from mobilemamba.training.confusion import ConfusionCounts


class DeviceMean(MeanMetric):
    """A weighted mean without what is NaN, as torchmetrics' own, which waits for the device at each update."""

    def update(self, value: Tensor, weight: Tensor | float = 1.0) -> None:  # type: ignore[override]  # no numbers
        """Adds numbers of any shape, whose weights have the same shape or are one number."""
        counted = ~value.isnan() * weight
        self.mean_value += (value.to(self.dtype) * counted).masked_fill(counted == 0, 0).sum()
        self.weight += counted.sum()


class Metrics(nn.Module):
    """The scores of one network.

    Attributes:
        counts: Which classes it took for which in the last result, as :meth:`ConfusionCounts.compute` gives them; None
            for what has no classes.
    """

    counts: Tensor | None = None

    def update(self, outputs: Any, targets: Any) -> None:
        """Adds a batch: what the network makes of it, and what would have been right."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """The task's scores and ``loss`` by their keys, over all processes; then starts anew."""
        raise NotImplementedError

    def changed(self, outputs: Any, others: Any, targets: Any) -> Tensor | None:
        """For how many pictures of a batch two networks answer differently, those that do not count left out.

        None where an answer is a measure, of which every other value is a little different.
        """
        return None


class ClassificationMetrics(Metrics):
    """Top-1 and top-5 accuracy in percent, and the mean cross entropy without label smoothing.

    Pictures labelled ``IGNORED`` do not count: the repeats that fill up the processes' equal shares. With fewer than 5
    classes top-5 counts all of them.
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
        self.confusion.update(answer, targets)  # also of none, so that all processes have some to gather

    def compute(self) -> dict[str, Tensor]:
        """``top1`` and ``top5`` in percent, and ``loss``, over all processes; then starts anew."""
        values = {"top1": 100 * self.top1.compute(), "top5": 100 * self.top5.compute(), "loss": self.loss.compute()}
        self.counts = self.confusion.compute()
        for metric in (self.top1, self.top5, self.loss, self.confusion):
            metric.reset()
        return values

    def changed(self, outputs: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """How many pictures of a batch are put into another class; logits and targets as for :meth:`update`."""
        return ((outputs.argmax(1) != others.argmax(1)) & (targets != IGNORED)).sum()


class Comparison(nn.Module):
    """Metrics of several networks on the same pictures: the raw one, its average (``ema``), its fused form.

    Args:
        metrics: Makes those of one network.
        headline: The score that the better of raw and averaged is chosen by.
    """

    SUFFIXES: ClassVar[dict[str, str]] = {"raw": "", "ema": "_ema", "fused": "_fused"}

    def __init__(self, metrics: Callable[[], Metrics], headline: Score) -> None:
        super().__init__()
        self.headline = headline
        self.metrics: dict[str, Metrics] = {}
        for name in self.SUFFIXES:
            self.metrics[name] = metrics()
            self.add_module(f"of_{name}", self.metrics[name])
        self.changed = SumMetric()

    @property
    def counts(self) -> dict[str, Tensor]:
        """Network's name -> which classes it took for which, in the last result."""
        return {name: metrics.counts for name, metrics in self.metrics.items() if metrics.counts is not None}

    def update(self, outputs: dict[str, Any], targets: Any) -> None:
        """Adds a batch.

        Args:
            outputs: Network's name -> what it makes of the batch.
            targets: As the task's :class:`Metrics` take them.
        """
        for name, of_network in outputs.items():
            self.metrics[name].update(of_network, targets)
        if "fused" in outputs:
            changed = self.metrics["raw"].changed(outputs["raw"], outputs["fused"], targets)
            if changed is not None:
                self.changed.update(changed)

    def compute(self, names: Iterable[str], prefix: str) -> dict[str, Tensor]:
        """The metrics of these networks over all processes; then starts anew.

        Args:
            names: The networks that were given to :meth:`update`.
            prefix: ``"val"`` or ``"test"``.

        Returns:
            ``val/KEY`` of every score and ``val/loss``, each with the network's suffix; ``val/top1_max`` (for a score
            that is better the smaller it is, ``_min``), the better headline of raw and average, where there is an
            average; ``val/fused_changed``, the number of pictures that the fused network answers differently, where
            there is one.
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
