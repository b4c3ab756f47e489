"""The interface of a task for callbacks, sweeps and the command line, and what takes its place for other modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard
from mobilemamba.scores import Score

#: Metric that selects the best validation of a module without a ``monitor``.
_USUAL = "val/top1"
#: Metrics of which smaller is better, if a module has no ``monitor_mode``.
_LESS_IS_BETTER = re.compile(r"loss|err|mae|mse|perplexity", re.IGNORECASE)


class TaskContract:
    """What callbacks, sweeps and the command line use of a task; other LightningModules need not have it.

    Attributes:
        task: Name of the task in model cards; empty for any.
        form: Class of :mod:`mobilemamba.data.batches` that makes the batches to learn from.
        counted: What :attr:`confusion` counts; ``objects`` have an additional class, the background.
        table_classes: Number of classes for the counts and throughput in tables, as in the paper.
        table_batch: Batch size for that throughput; None for the usual one.
        scores: Scores that evaluations log as ``val/KEY`` and ``test/KEY``; the first is the headline.
        model: The network that is trained.
    """

    task: ClassVar[str] = ""
    form: ClassVar[type] = object
    counted: ClassVar[str] = "pictures"
    table_classes: ClassVar[int] = 1000
    table_batch: ClassVar[int | None] = None
    scores: ClassVar[tuple[Score, ...]]
    model: nn.Module

    @classmethod
    def scores_with(cls, settings: Mapping[str, Any]) -> tuple[Score, ...]:
        """Returns the scores of a task that is built with these arguments."""
        return cls.scores

    @property
    def monitor(self) -> str:
        """Name of the logged metric that selects the best validation."""
        return f"val/{self.scores[0].key}"

    def average_is_better(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether the averaged network is better than the raw one in a validation or a test.

        Args:
            metrics: Metrics that the evaluation logged.
        """
        headline = self.scores[0]
        logged = f"val/{headline.key}" if f"val/{headline.key}" in metrics else f"test/{headline.key}"
        raw, averaged = metrics.get(logged), metrics.get(f"{logged}_ema")
        return raw is not None and averaged is not None and headline.is_better(averaged, raw)

    @property
    def confusion(self) -> Tensor | None:
        """Confusion counts of the better network in the last evaluation, (n, 3): class, prediction, count."""
        return None

    def look_closely(self, window: int | None, tta: bool) -> None:
        """Makes later evaluations use sliding windows or test-time augmentation.

        Args:
            window: Side of the windows in pixels; None for whole pictures.
            tta: Whether to average over scaled and mirrored views of a picture.

        Raises:
            ConfigError: If the task supports neither, or the window is too small.
        """
        if window is not None or tta:
            raise ConfigError(f"--{'tta' if window is None else 'window'} is for segmentation, not {self.task}")

    def draw_example(self, images: Any, targets: Any) -> Image.Image | None:
        """Draws a validation picture with its target and the network's prediction; None for a task without drawings.

        Args:
            images: A batch of one picture.
            targets: Its target, as a batch of one.
        """
        return None

    def draw_training(self, images: Any, targets: Any, number: int) -> list[Image.Image]:
        """Draws pictures of a training batch with their targets, as the network learns from them.

        Args:
            images: The batch, which is not changed.
            targets: Its targets.
            number: The most pictures to draw.
        """
        return []

    @property
    def of_classes(self) -> dict[str, float]:
        """Class name -> its headline score, for the better network; empty if the headline is no mean over classes."""
        return {}

    def class_rows(self, *, worst_first: bool) -> list[dict[str, Any]] | None:
        """Returns the rows of the table of classes that ``validate`` prints; None to make it from :attr:`confusion`.

        Args:
            worst_first: Whether to sort from worst to best, rather than by label.
        """
        return None

    @property
    def curves(self) -> dict[str, Tensor]:
        """Fields of :class:`~mobilemamba.training.detection_metrics.ClassPrecision`; empty if there are no curves."""
        return {}

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        """Returns the arguments that build a network for the weights of a card, or for as many of them as fit."""
        return {"name": card.model, "in_chans": card.in_chans, "arch": card.arch}

    @property
    def total_batch_size(self) -> int:
        """Pictures per optimiser step, over all devices and accumulated batches."""
        raise NotImplementedError

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """Returns a newly initialised network of this task's architecture.

        Args:
            num_classes: Number of classes instead of the task's own, e.g. the 1000 of the counts in tables.
            in_chans: Channels of a picture instead of the task's own.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's parameter groups, without learning rates."""
        raise NotImplementedError


def monitor_of(module: Any) -> tuple[str, str]:
    """Returns the metric that selects a module's best validation, and whether its ``"max"`` or ``"min"`` is best.

    For a task it is the first score. Another module may have the attributes ``monitor`` (default ``val/top1``) and
    ``monitor_mode`` (default ``"min"`` for losses and errors, else ``"max"``).
    """
    named = getattr(module, "monitor", None)
    monitor = named if isinstance(named, str) else _USUAL
    if isinstance(module, TaskContract):
        return monitor, module.scores[0].direction
    mode = getattr(module, "monitor_mode", None)
    return monitor, mode if mode in ("min", "max") else "min" if _LESS_IS_BETTER.search(monitor) else "max"


def scores_of(module: Any) -> tuple[Score, ...]:
    """Returns a task's scores; for another module, or its class, the metric that selects its best validation."""
    if isinstance(module, TaskContract) or (isinstance(module, type) and issubclass(module, TaskContract)):
        return module.scores
    monitor, mode = monitor_of(module)
    key = monitor.removeprefix("val/")
    return (Score(key, key, "min" if mode == "min" else "max", digits=4, unit=""),)
