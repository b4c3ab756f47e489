"""The interface of a task for callbacks, sweeps and the command line, and what takes its place for other modules."""

from __future__ import annotations

import inspect
import json
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, ArchOverrides, ModelCard
from mobilemamba.scores import Score

#: What a module is chosen by that does not say it.
_USUAL = "val/top1"
#: What is better the smaller it is, where a module does not say so by ``monitor_mode``.
_LESS_IS_BETTER = re.compile(r"loss|err|mae|mse|perplexity", re.IGNORECASE)

#: Arguments of an ``__init__`` that say where the weights come from, which a checkpoint has no need of; Python's own.
_NOT_KEPT = {"self", "__class__", "weights", "partial_weights", "new_head", "training"}


class TaskContract:
    """What callbacks, sweeps and the command line ask of a task; of any other LightningModule they ask nothing.

    Attributes:
        task: Its name in model cards; blank for any.
        form: What makes the batches that it learns from, a class of :mod:`mobilemamba.data.batches`.
        counted: What :attr:`confusion` counts; of ``objects`` there is one more class, the background.
        table_classes: Classes of the network that a table's counts and throughput are for, as in the paper.
        table_batch: Pictures at a time of that throughput; None for the usual number.
        scores: What its evaluations log as ``val/KEY`` and ``test/KEY``; the first is the headline.
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
        """The scores of a task that is built with these arguments."""
        return cls.scores

    @property
    def monitor(self) -> str:
        """The logged metric that the best validation is chosen by."""
        return f"val/{self.scores[0].key}"

    def average_is_better(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether the averaged network won a validation.

        Args:
            metrics: What it logged.
        """
        headline = self.scores[0]
        raw, averaged = metrics.get(f"val/{headline.key}"), metrics.get(f"val/{headline.key}_ema")
        if raw is None or averaged is None:
            return False
        return bool(averaged > raw if headline.direction == "max" else averaged < raw)

    @property
    def confusion(self) -> dict[str, Tensor]:
        """Network's name -> (n, 3): class, answer, how often; of the last evaluation. Empty where there are none."""
        return {}

    def look_closely(self, window: int | None, tta: bool) -> None:
        """Has evaluations see pictures in windows, or in several views, from now on.

        Args:
            window: Side of the windows in pixels; None for whole pictures.
            tta: Whether to average over views of other sizes and mirrored ones.

        Raises:
            ConfigError: If the task has neither, or the window is too small.
        """
        if window is not None or tta:
            raise ConfigError(f"--{'tta' if window is None else 'window'} is for segmentation, not {self.task}")

    def draw_example(self, images: Any, targets: Any) -> Image.Image | None:
        """A validation picture, what is known of it and what the network makes of it; None for a task without drawings.

        Args:
            images: A batch of one.
            targets: Likewise.
        """
        return None

    @property
    def of_classes(self) -> dict[str, float]:
        """Class's name -> its part in the headline, of the better network; empty where that is no mean over classes."""
        return {}

    def class_rows(self, *, worst_first: bool) -> list[dict[str, Any]] | None:
        """What ``validate`` tells of each class, as lines of a table; None where :attr:`confusion` tells it.

        Args:
            worst_first: Else in the order of the labels.
        """
        return None

    @property
    def curves(self) -> dict[str, Tensor]:
        """Precision over recall, as :class:`~mobilemamba.training.detection_metrics.ClassPrecision`; empty for none."""
        return {}

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        """The arguments that the network of a card is built by, or what of them its weights can be loaded into."""
        return {"name": card.model, "in_chans": card.in_chans, "arch": card.arch}

    @property
    def total_batch_size(self) -> int:
        """Pictures an optimiser step sees, over all devices and accumulated batches."""
        raise NotImplementedError

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """A freshly initialised network of this task's architecture.

        Args:
            num_classes: In place of the task's own, e.g. the 1000 that a table's counts are for.
            in_chans: Likewise.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups, without their learning rates."""
        raise NotImplementedError


def monitor_of(module: Any) -> tuple[str, str]:
    """The metric that a module's best validation is chosen by, and whether the ``"max"`` or the ``"min"`` is the best.

    Of a task, its first score; of another module, the attributes ``monitor`` and ``monitor_mode``; without them
    ``val/top1``, and for losses and errors the least.
    """
    named = getattr(module, "monitor", None)
    monitor = named if isinstance(named, str) else _USUAL
    if isinstance(module, TaskContract):
        return monitor, module.scores[0].direction
    mode = getattr(module, "monitor_mode", None)
    return monitor, mode if mode in ("min", "max") else "min" if _LESS_IS_BETTER.search(monitor) else "max"


def scores_of(module: Any) -> tuple[Score, ...]:
    """A task's scores; of another module, or its class, the metric that its best validation is chosen by."""
    if isinstance(module, TaskContract) or (isinstance(module, type) and issubclass(module, TaskContract)):
        return module.scores
    monitor, mode = monitor_of(module)
    key = monitor.removeprefix("val/")
    return (Score(key, key, "min" if mode == "min" else "max", digits=4, unit=""),)


def plain_settings(given: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """The arguments of an ``__init__`` that a checkpoint keeps, as plain values: it has to load with ``weights_only``.

    Args:
        given: All of them; the real values, as what the command line links is not in its own record.
        limits: Least and greatest value of those that are numbers.

    Raises:
        ConfigError: If a value is out of range.
    """
    # Through JSON: lists for tuples, so that hparams.yaml is plain YAML.
    kept: dict[str, Any] = json.loads(json.dumps({key: given[key] for key in given if key not in _NOT_KEPT}))
    for name, (low, high) in limits.items():
        value = kept.get(name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ConfigError(f"{name}={value}: expected {expected}; change model.{name}")
    if not all(0 <= beta < 1 for beta in kept.get("betas", ())):
        raise ConfigError(f"betas={kept['betas']}: expected two numbers from 0 to below 1; change model.betas")
    return kept


def network_settings(
    name: str, arch: ArchOverrides | Mapping[str, Any], drop_path_rate: float | None
) -> dict[str, Any]:
    """The choices of a network as a checkpoint keeps them.

    Args:
        name: Of the model.
        arch: Laid over it; from a checkpoint, as it keeps them.
        drop_path_rate: None for what the model was released with.
    """
    chosen = ArchOverrides(**arch) if isinstance(arch, Mapping) else arch
    if drop_path_rate is None:
        drop_path_rate = VARIANTS[name].drop_path_rate if name in VARIANTS else 0.0
    return {"arch": chosen.given(), "drop_path_rate": drop_path_rate}


def init_arguments(kind: type) -> dict[str, Any]:
    """The arguments of a class with their types, those included that it passes on to its base by ``**``."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        init = vars(owner).get("__init__")
        if init is None:
            continue
        hints, parameters = typing.get_type_hints(init), inspect.signature(init).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        found |= {name: hints.get(name) for name in named}
        if len(named) + 1 == len(parameters):
            break
    return found
