"""Plots of a training, written to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mobilemamba.data.base import data_of
from mobilemamba.training.callbacks.at_end import AtEnd
from mobilemamba.training.callbacks.results import best_of, best_validation, keep_best
from mobilemamba.training.callbacks.trainer_state import is_recorded
from mobilemamba.training.contract import TaskContract, scores_of
from mobilemamba.training.detection_metrics import ClassPrecision
from mobilemamba.training.loaders import steps_an_epoch
from mobilemamba.training.optimizer import rate_to_show
from mobilemamba.training.plots import draw_confusion, draw_curves, draw_precision_recall


class TrainingPlots(AtEnd):
    """Writes ``learning_curves.png`` and plots of the best validation's classes at the end of a training.

    ``confusion_matrix.png`` shows the confusion of classes, ``precision_recall.png`` the precision of a detector over
    its recall. They show the last validation if no best one is known. If a plot fails, a warning says so, and the
    training is not affected.

    Attributes:
        history: Values of the learning curves.
        confusions: Step -> confusion counts, for the last validation and the best one.
        precisions: Step -> precision-recall curves, for the same validations.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.confusions: dict[int, Tensor] = {}
        self.precisions: dict[int, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "confusions": self.confusions, "precisions": self.precisions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]
        self.confusions = state_dict.get("confusions", {})
        self.precisions = state_dict.get("precisions", {})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the mean loss of the previous epoch, which the module logs only after the callbacks' epoch end."""
        self._keep(trainer, "train/loss")

    on_train_end = on_train_epoch_start

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the mean loss of an epoch that ends with this checkpoint, as a resumed run cannot know it."""
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.processed == epochs.started:
            self._keep(trainer, "train/loss")
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the scores and confusion counts; whether this is the best validation is decided later."""
        if not is_recorded(trainer):
            return
        self._keep(trainer, "val/")
        if isinstance(pl_module, TaskContract) and (confusion := pl_module.confusion) is not None:
            self.confusions = keep_best(self.confusions, confusion, trainer, pl_module)
            if curves := pl_module.curves:
                self.precisions = keep_best(self.precisions, curves, trainer, pl_module)

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
                draw_classes(folder, self.confusions[step].long(), self.precisions.get(step, {}), names, title, counted)
        except Exception as error:  # any error at all, as the training itself has succeeded
            rank_zero_warn(f"no plots of the training: {type(error).__name__}: {error}")

    def _keep(self, trainer: Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics.items()
        found = {name: float(v) for name, v in metrics if name.startswith(prefix) and not name.endswith("_step")}
        if not found:
            return
        epoch, rate = trainer.global_step / (steps_an_epoch(trainer) or 1), rate_to_show(trainer.optimizers)
        entry = {"epoch": epoch, **({} if rate is None else {"lr": rate}), **found}
        before = [e for e in self.history if e["epoch"] < epoch or (e["epoch"] == epoch and not e.keys() & found)]
        self.history = [*before, entry]


def draw_classes(
    folder: Path, confusion: Tensor, curves: dict[str, Tensor], names: list[str], title: str, counted: str
) -> None:
    """Writes the plots of an evaluation's classes: ``confusion_matrix.png``, and ``precision_recall.png`` for curves.

    Args:
        folder: Folder for the plots.
        confusion: Counts of one network, see :attr:`~mobilemamba.training.contract.TaskContract.confusion`.
        curves: See :attr:`~mobilemamba.training.contract.TaskContract.curves`; may be empty.
        names: Names of the classes.
        title: Title of the plots.
        counted: What was counted.

    Raises:
        OSError: If a file cannot be written.
    """
    known = [*names, "background"] if counted == "objects" else names
    draw_confusion(confusion, known, folder / "confusion_matrix.png", title, counted)
    if curves:
        draw_precision_recall(ClassPrecision(**curves), names, folder / "precision_recall.png", title)
