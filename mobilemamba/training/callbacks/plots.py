"""Pictures of a training in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mobilemamba.training.plots import draw_confusion, draw_curves

_KEPT = ("history", "best", "best_epoch", "counts")


class TrainingPlots(Callback):
    """Writes ``learning_curves.png`` and, for a classifier, ``confusion_matrix.png`` of its best validation at the end.

    A training never fails for them: what hinders them is a warning.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.best = -1.0
        self.best_epoch = 0.0
        self.counts: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        for name in _KEPT:
            setattr(self, name, state_dict[name])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the mean loss of the epoch before, which is known only after the epoch's end."""
        self._keep(trainer, "train/loss")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps that of the last epoch."""
        self._keep(trainer, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the scores, and of the best validation which classes were taken for which."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._keep(trainer, "val/")
        score = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        confusion: dict[str, Tensor] = getattr(pl_module, "confusion", {})
        if score is not None and float(score) > self.best and confusion:
            metrics = trainer.callback_metrics
            averaged = "ema" in confusion and bool(metrics["val/top1_ema"] > metrics["val/top1"])
            self.best, self.best_epoch = float(score), self.history[-1]["epoch"]
            self.counts = confusion["ema" if averaged else "raw"].to(torch.int32)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        if not trainer.is_global_zero or trainer.interrupted or getattr(trainer, "fast_dev_run", False):
            return
        folder, data = Path(trainer.default_root_dir), getattr(trainer, "datamodule", None)
        on = f"{folder.name}, {getattr(data, 'name', 'unnamed data')}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.history:
                draw_curves(self.history, folder / "learning_curves.png", on)
            if self.counts is not None:
                classes = pl_module.hparams["num_classes"]
                names = list(getattr(data, "class_names", ())) or [str(index) for index in range(classes)]
                title = f"{on}: validation after epoch {self.best_epoch:.3g}"
                draw_confusion(self.counts.long(), names, folder / "confusion_matrix.png", title)
        except Exception as error:  # whatever it is, the training itself is done and well
            rank_zero_warn(f"no plots of the training: {type(error).__name__}: {error}")

    def _keep(self, trainer: Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics.items()
        found = {name: float(v) for name, v in metrics if name.startswith(prefix) and not name.endswith("_step")}
        if not found:
            return
        steps = max(1, trainer.num_training_batches // trainer.accumulate_grad_batches)
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups if "lr" in group]
        entry = {"epoch": trainer.global_step / steps, **({"lr": max(rates)} if rates else {}), **found}
        self.history = [known for known in self.history if known["epoch"] <= entry["epoch"]]
        self.history.append(entry)
