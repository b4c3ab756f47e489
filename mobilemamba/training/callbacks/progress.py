"""Progress of a training: a progress bar on a terminal, and everywhere a line for each validation."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, Timer
from torch import Tensor

from mobilemamba.scores import Score, score_of
from mobilemamba.screen import say
from mobilemamba.training.callbacks.trainer_state import callbacks_of, epochs_begun
from mobilemamba.training.contract import scores_of

_READ_SECONDS = 0.3  # interval at which the progress bar reads the loss
_OTHER = Score("", "", unit="")  # format of logged values that are not scores


class TrainingBar(RichProgressBar):
    """Lightning's progress bar with the training loss only; disappears before the last lines of a run are printed.

    Epochs are counted from 1, as in these lines.
    """

    _ended = False
    _shown: dict[str, Any] = {}  # noqa: RUF012 - never changed
    _due = 0.0

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.live.transient = True  # the lines above it already show its content
            _log_to_stderr_of_now()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the loss, but no scores; reads it only a few times per second, as reading waits for the device."""
        if (now := time.monotonic()) < self._due:
            return self._shown
        found = super().get_metrics(trainer, pl_module)
        self._shown = {
            name.removeprefix("train/").removesuffix("_step"): value
            for name, value in found.items()
            if name.startswith("train/")
        }
        self._due = now + _READ_SECONDS if self._shown else 0.0
        return self._shown

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}{of_epochs(self.trainer.max_epochs)}".ljust(len(self.validation_description))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the bar before other callbacks report the end of the run, at ``on_fit_end``."""
        self._ended = True
        self._stop_progress()

    on_fit_end = on_train_end  # if a resumed run has no step left to train

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._ended:
            self._stop_progress()

    def _stop_progress(self) -> None:
        super()._stop_progress()
        _log_to_stderr_of_now()


def _log_to_stderr_of_now() -> None:
    """Makes Lightning's log appear above the bar: its handler otherwise keeps the standard error from its import."""
    for handler in logging.getLogger("lightning.pytorch").handlers:
        if isinstance(handler, logging.StreamHandler) and _unwrapped(handler.stream) is _unwrapped(sys.stderr):
            handler.setStream(sys.stderr)


def _unwrapped(stream: Any) -> Any:
    """Returns the file that a live display has replaced by a proxy."""
    return getattr(stream, "rich_proxied_file", stream)


def of_epochs(max_epochs: int | None) -> str:
    """Returns the suffix of an epoch's number with the number of epochs; empty if steps or time limit the training."""
    return f"/{max_epochs}" if max_epochs is not None and max_epochs > 0 else ""


class EpochLines(Callback):
    """Prints a line after each validation, or after each epoch without one: loss, scores and the time left.

    The loss is the mean of the training loss since the last line, on the first process.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count: Tensor | int = 0
        self._started, self._first_step = time.monotonic(), 0
        self._told = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach().float() * trainer.accumulate_grad_batches  # as Lightning has divided it by this
            finite = loss.isfinite()
            self._sum = self._sum + loss.masked_fill(~finite, 0.0)
            self._count = self._count + finite

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._say(trainer, _scores(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._told < trainer.global_step:
            self._say(trainer, [])

    def _say(self, trainer: Trainer, scores: list[str]) -> None:
        self._told = trainer.global_step
        count = float(self._count)
        parts = [f"train loss {float(self._sum) / count:.4f}"] if count else []
        self._sum, self._count = 0.0, 0
        if trainer.is_global_zero:
            place = f"epoch {epochs_begun(trainer)}{of_epochs(trainer.max_epochs)}, step {trainer.global_step:,}"
            say(f"{place}: {', '.join([*parts, *scores, *self._left(trainer)])}")

    def _left(self, trainer: Trainer) -> list[str]:
        done = trainer.global_step - self._first_step
        if done < 1:
            return []
        limits = [timer.time_remaining() for timer in callbacks_of(trainer, Timer)]  # of trainer.max_time
        try:
            steps = max(0, trainer.estimated_stepping_batches - trainer.global_step)
            seconds = (time.monotonic() - self._started) / done * steps
            seconds = min([seconds, *(max(0, limit) for limit in limits if limit is not None)])
            return [f"{timedelta(seconds=round(seconds))} left"]
        except OverflowError:  # the training has no end, or one in millions of years
            return []


def _scores(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Formats the losses and then the scores, each score with its number of digits."""
    scores = scores_of(pl_module)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    losses = [f"val {name[4:]} {value:.4f}" for name, value in found.items() if "loss" in name]
    others = {name: score_of(name, scores) for name in found if "loss" not in name}
    return losses + [f"{name[4:]} {(score or _OTHER).number(found[name])}" for name, score in others.items()]
