"""Pictures of a training in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mobilemamba.data.base import data_of
from mobilemamba.training.callbacks.others import AtEnd
from mobilemamba.training.callbacks.results import best_of, best_validation, keep_best
from mobilemamba.training.callbacks.validation import counts
from mobilemamba.training.contract import TaskContract, scores_of
from mobilemamba.training.plots import draw_confusion, draw_curves


class TrainingPlots(AtEnd):
    """Writes ``learning_curves.png`` and, for a classifier, ``confusion_matrix.png`` of its best validation at the end.

    Of the last validation, if no best one is known. A training never fails for them: what hinders them is a warning.

    Attributes:
        history: What the curves are drawn from.
        confusions: Step -> which classes were taken for which, of the last validation and of the best one.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.confusions: dict[int, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "confusions": self.confusions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]
        self.confusions = state_dict.get("confusions", {})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the mean loss of the epoch before, which is known only after the epoch's end."""
        self._keep(trainer, "train/loss")

    on_train_end = on_train_epoch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the scores, and which classes were taken for which: whether it is the best, others find out later."""
        if not counts(trainer):
            return
        self._keep(trainer, "val/")
        if isinstance(pl_module, TaskContract) and (confusion := pl_module.confusion):
            averaged = "ema" in confusion and pl_module.average_is_better(trainer.callback_metrics)
            now = confusion["ema" if averaged else "raw"]
            self.confusions = keep_best(self.confusions, now, trainer, pl_module)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        folder, data = Path(trainer.default_root_dir), data_of(trainer)
        on = f"{folder.name}, {'unnamed data' if data is None else data.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.history:
                draw_curves(self.history, scores_of(pl_module), folder / "learning_curves.png", on)
            if self.confusions:
                step = best_of(self.confusions, trainer, pl_module)
                best = best_validation(trainer, pl_module).get("step")
                classes = range(pl_module.hparams["num_classes"])
                names = list(map(str, classes)) if data is None else list(data.class_names)
                title = f"{on}: validation after {step:,} steps, {'the best' if step == best else 'the last'}"
                counted = pl_module.counted if isinstance(pl_module, TaskContract) else "pictures"
                draw_confusion(self.confusions[step].long(), names, folder / "confusion_matrix.png", title, counted)
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
