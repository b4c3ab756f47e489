"""The two checkpoints of a run: the weights of its best validation, and the newest state of its training."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.errors import WeightsError
from mobilemamba.files import remove_unfinished
from mobilemamba.models.weights_file import read_checkpoint
from mobilemamba.training.callbacks.others import check_destination
from mobilemamba.training.callbacks.storage import AtomicCheckpointIO
from mobilemamba.training.callbacks.validation import (
    ValidateAtEnd,
    Validation,
    callbacks_of,
    counts,
    is_of_epochs,
    validation_now,
)
from mobilemamba.training.checkpoint_files import BEST, FOLDER, LAST, PREVIOUS
from mobilemamba.training.contract import monitor_of

#: The best weights once more, for use elsewhere, beside the folder of the checkpoints.
EXPORTED = "best.safetensors"
#: What a training, and nothing beside it, writes into a run's folder.
_OF_A_TRAINING = (EXPORTED, "config.yaml", "measure.json", "progress.json", "results.json")


def run_checkpoints(root: str | Path, module: Any) -> list[ModelCheckpoint]:
    """The callbacks that keep ``best.ckpt`` and ``last.ckpt`` of a run, for the front of a trainer's list.

    Args:
        root: The run's folder.
        module: What is trained; see :func:`~mobilemamba.training.contract.monitor_of`.
    """
    folder = str(Path(root) / FOLDER)
    monitor, mode = monitor_of(module)
    return [
        BestCheckpoint(folder, Path(BEST).stem, monitor=monitor, mode=mode, save_weights_only=True),
        LastCheckpoint(folder, Path(LAST).stem),
    ]


class _RunCheckpoint(ModelCheckpoint):
    """One file under one name, whatever stood there; written whole or not at all, unless the user stores otherwise."""

    def __init__(self, folder: str, filename: str, **options: Any) -> None:
        super().__init__(folder, filename, enable_version_counter=False, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # the folder is not empty in a run that goes on
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    # When to save, the derived classes say.
    def on_train_batch_end(self, *_: Any, **__: Any) -> None: ...

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    @property
    def path(self) -> str:
        return self.format_checkpoint_name({})


class BestCheckpoint(_RunCheckpoint):
    """Keeps the weights of the best validation so far in ``best.ckpt``, whichever of an epoch's it was.

    Where the metric is one of the training's epochs, these are judged in place of the validations.

    After a resume, the best is the one whose weights this folder's ``best.ckpt`` holds, wherever the folder was before;
    if it holds others or is gone, the next validation is the best so far. So score and weights always belong together.

    Attributes:
        validation: The best so far, None before the first.
    """

    validation: Validation | None = None
    _found: Validation | None = None  # by the last one
    _restorable = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the end validated if the best is not known, and ModelCheckpoints of the user's own leave us our names.

        Raises:
            ConfigError: If one of these could never write its file.
        """
        for at_end in callbacks_of(trainer, ValidateAtEnd) if self.validation is None else []:
            at_end.validated_step = -1
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, _RunCheckpoint):
                continue
            check_destination(other, trainer)
            if not isinstance(other, ModelCheckpoint) or os.path.realpath(str(other.dirpath)) != self.dirpath:
                continue
            # As Lightning names a file whose name is taken.
            if Path(LAST).stem == other.CHECKPOINT_NAME_LAST:
                other.CHECKPOINT_NAME_LAST += "-v1"
            taken = [BEST, PREVIOUS, *([LAST] if other.save_weights_only else [])]
            if f"{other.filename}{other.FILE_EXTENSION}" in taken:
                other.filename = f"{other.filename}-v1"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the weights if this is the best validation so far."""
        if not counts(trainer):
            return
        found = validation_now(trainer, self.monitor)
        if self.validation is not None and self.validation["step"] == found["step"]:
            self.validation = self.validation | found  # of the last epoch, validated after it had been judged
        self._found = found
        self._judge(trainer, found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the weights if this is the best epoch so far, by a metric of the training."""
        assert self.monitor is not None
        if not counts(trainer) or not is_of_epochs(trainer, self.monitor):
            return
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if math.isfinite(score):
            found = validation_now(trainer, None)
            if self._found is None or self._found["step"] != found["step"]:
                found = {key: found[key] for key in ("epoch", "step")}  # the rest is of other weights
            self._judge(trainer, {**found, self.monitor: score})

    def _judge(self, trainer: Trainer, validation: Validation) -> None:
        if self.monitor not in validation:
            return
        score = torch.tensor(validation[self.monitor])
        if self.check_monitor_top_k(trainer, score):
            self.validation = validation
            self._update_best_and_save(score, trainer, self._monitor_candidates(trainer))

    def best_with(self, validation: Validation) -> Validation | None:
        """Which is the best once this one has been considered, as :meth:`on_validation_end` will do."""
        assert self.monitor is not None
        score, best = validation.get(self.monitor), (self.validation or {}).get(self.monitor)
        if score is None or (best is not None and not (score > best if self.mode == "max" else score < best)):
            return self.validation
        return validation

    def settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last weights where no validation tells the best; for the end of a training, in all processes."""
        known = self.validation or {}
        if self.monitor in known or known.get("step", 0) == trainer.global_step:
            return
        if trainer.interrupted and trainer.world_size > 1:  # by what failed in one process: the others would wait
            return
        self.validation, self.best_model_path = validation_now(trainer, self.monitor), self.path
        self._save_checkpoint(trainer, self.path)
        rank_zero_info(f"no {self.monitor} that tells the best: {self.path} holds the last weights")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"validation": self.validation}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finds out, for all processes alike, whether the file is still the one that the state speaks of."""
        validation = checkpoint["callbacks"].get(self.state_key, {}).get("validation")
        step = _step(self.path) if trainer.is_global_zero and validation else None
        self._restorable = trainer.strategy.broadcast(step is not None and step == validation["step"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint of this folder, wherever it was then."""
        if not self._restorable:
            return
        score = state_dict["best_model_score"]
        here: dict[str, Any] = {"dirpath": self.dirpath, "best_model_path": self.path, "last_model_path": ""}
        if score is not None:
            here |= {"kth_best_model_path": self.path, "best_k_models": {self.path: score}}
        super().load_state_dict(state_dict | here)
        self.validation = state_dict["validation"]

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:  # it is of the best before
            (Path(trainer.default_root_dir) / EXPORTED).unlink(missing_ok=True)
        super()._save_checkpoint(trainer, filepath)


class LastCheckpoint(_RunCheckpoint):
    """Keeps the newest state of the training in ``last.ckpt``: of each epoch's end and each validation within one.

    But for those between the batches of one optimiser step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes away what a killed run left half written."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            folder = Path(str(self.dirpath))
            names = [(folder, f"*{self.FILE_EXTENSION}"), *((folder.parent, name) for name in _OF_A_TRAINING)]
            for where, name in names:
                remove_unfinished(where / name)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, unless the epoch ends here, which saves too, or gradients are summed up, which no checkpoint keeps."""
        loop = trainer.fit_loop.epoch_loop
        epochs: Any = trainer.fit_loop.epoch_progress.current
        within = epochs.processed < epochs.started
        if counts(trainer) and not (within and (loop._num_ready_batches_reached() or loop._should_accumulate())):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if counts(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a training that has ended within an epoch go on there, if it is gone on with for more steps.

        Lightning counts such an epoch as done. Here the loops' state is what it was after the last batch. Without the
        sum of gradients of a step half done, there is no going on within the epoch.
        """
        loop, state = trainer.fit_loop.epoch_loop, checkpoint["loops"]["fit_loop"]
        epochs, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
        ended = epochs["current"]["processed"] == epochs["current"]["started"] > 0
        if not ended or loop._num_ready_batches_reached() or loop._should_accumulate():
            return
        for scope in ("current", "total"):
            epochs[scope]["processed"] = epochs[scope]["completed"] = epochs[scope]["started"] - 1
            batches[scope]["completed"] = batches[scope]["processed"] - 1
        state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        checkpoint["epoch"] = epochs["current"]["completed"]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the file's name is all."""
        return {}


def best_checkpoint(trainer: Trainer) -> BestCheckpoint | None:
    """The trainer's, if it has one."""
    return next(iter(callbacks_of(trainer, BestCheckpoint)), None)


def _step(path: str) -> int | None:
    """After how many steps a checkpoint was written; None if it cannot be read."""
    try:
        return read_checkpoint(path, mmap=True).get("global_step")
    except WeightsError:
        return None
