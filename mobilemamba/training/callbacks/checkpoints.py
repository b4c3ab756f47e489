"""The two checkpoints of a run: the weights of its best validation, and the latest state of its training."""

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
from mobilemamba.training.callbacks.checkpoint_io import AtomicCheckpointIO
from mobilemamba.training.callbacks.trainer_state import callbacks_of, is_recorded
from mobilemamba.training.callbacks.user_callbacks import check_destination
from mobilemamba.training.callbacks.validation import ValidateAtEnd, Validation, is_of_epochs, validation_now
from mobilemamba.training.checkpoint_files import BEST, FOLDER, LAST, PREVIOUS
from mobilemamba.training.contract import monitor_of

#: The exported best weights, for use elsewhere; beside the folder of the checkpoints.
EXPORTED = "best.safetensors"


def run_checkpoints(root: str | Path, module: Any) -> list[ModelCheckpoint]:
    """Returns the callbacks that write ``best.ckpt`` and ``last.ckpt`` of a run; they come first in a trainer's list.

    Args:
        root: The run's folder.
        module: The module that is trained; see :func:`~mobilemamba.training.contract.monitor_of`.
    """
    folder = str(Path(root) / FOLDER)
    monitor, mode = monitor_of(module)
    return [
        BestCheckpoint(folder, Path(BEST).stem, monitor=monitor, mode=mode, save_weights_only=True),
        LastCheckpoint(folder, Path(LAST).stem),
    ]


class _RunCheckpoint(ModelCheckpoint):
    """Base class that writes one file of a fixed name, replacing it atomically unless the user sets a checkpoint IO."""

    def __init__(self, folder: str, filename: str, **options: Any) -> None:
        super().__init__(folder, filename, enable_version_counter=False, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():  # the folder of a resumed run is not empty
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    # The derived classes decide when to save.
    def on_train_batch_end(self, *_: Any, **__: Any) -> None: ...

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...

    @property
    def path(self) -> str:
        return self.format_checkpoint_name({})


class BestCheckpoint(_RunCheckpoint):
    """Keeps the weights of the best validation so far in ``best.ckpt``; an epoch may have several validations.

    If the metric is logged per training epoch, epochs are compared instead of validations.

    After a resume, the best validation is the one whose weights are in this folder's ``best.ckpt``, even if the folder
    was moved; if the file has other weights or is missing, the next validation becomes the best so far. So score and
    weights always belong together.

    Attributes:
        validation: Record of the best validation so far, None before the first.
    """

    validation: Validation | None = None
    _found: Validation | None = None  # record of the last validation
    _restorable = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Requests a final validation if the best is unknown, and renames files of the user's own ModelCheckpoints.

        Those files would otherwise overwrite ours.

        Raises:
            ConfigError: If one of the user's callbacks could never write its file.
        """
        for at_end in callbacks_of(trainer, ValidateAtEnd) if self.validation is None else []:
            at_end.validated_step = -1
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, _RunCheckpoint):
                continue
            check_destination(other, trainer)
            if not isinstance(other, ModelCheckpoint) or os.path.realpath(str(other.dirpath)) != self.dirpath:
                continue
            # Lightning's own suffix for a file name that is already taken.
            if Path(LAST).stem == other.CHECKPOINT_NAME_LAST:
                other.CHECKPOINT_NAME_LAST += "-v1"
            taken = [BEST, PREVIOUS, *([LAST] if other.save_weights_only else [])]
            if f"{other.filename}{other.FILE_EXTENSION}" in taken:
                other.filename = f"{other.filename}-v1"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the weights if this is the best validation so far."""
        if not is_recorded(trainer):
            return
        found = validation_now(trainer, self.monitor)
        if self.validation is not None and self.validation["step"] == found["step"]:
            self.validation = self.validation | found  # the last epoch, validated after the comparison of epochs
        self._found = found
        self._judge(trainer, found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the weights if this is the best epoch so far, by a metric of the training."""
        assert self.monitor is not None
        if not is_recorded(trainer) or not is_of_epochs(trainer, self.monitor):
            return
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if math.isfinite(score):
            found = validation_now(trainer, None)
            if self._found is None or self._found["step"] != found["step"]:
                found = {key: found[key] for key in ("epoch", "step")}  # the metrics belong to earlier weights
            self._judge(trainer, {**found, self.monitor: score})

    def _judge(self, trainer: Trainer, validation: Validation) -> None:
        if self.monitor not in validation:
            return
        score = torch.tensor(validation[self.monitor])
        if self.check_monitor_top_k(trainer, score):
            self.validation = validation
            self._update_best_and_save(score, trainer, self._monitor_candidates(trainer))

    def best_with(self, validation: Validation) -> Validation | None:
        """Returns the best validation including this one, as :meth:`on_validation_end` will decide."""
        assert self.monitor is not None
        score, best = validation.get(self.monitor), (self.validation or {}).get(self.monitor)
        if score is None or (best is not None and not (score > best if self.mode == "max" else score < best)):
            return self.validation
        return validation

    def settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the last weights if no validation determined the best; called in all processes at the end."""
        known = self.validation or {}
        if self.monitor in known or known.get("step", 0) == trainer.global_step:
            return
        if trainer.interrupted and trainer.world_size > 1:  # by an error in one process, which would wait for the rest
            return
        self.validation, self.best_model_path = validation_now(trainer, self.monitor), self.path
        self._save_checkpoint(trainer, self.path)
        rank_zero_info(f"no {self.monitor} that tells the best: {self.path} holds the last weights")

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"validation": self.validation}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks, for all processes alike, whether ``best.ckpt`` is still the file that the state describes."""
        validation = checkpoint["callbacks"].get(self.state_key, {}).get("validation")
        step = _step(self.path) if trainer.is_global_zero and validation else None
        self._restorable = trainer.strategy.broadcast(step is not None and step == validation["step"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state with the paths of this folder, which may have been moved."""
        if not self._restorable:
            return
        score = state_dict["best_model_score"]
        here: dict[str, Any] = {"dirpath": self.dirpath, "best_model_path": self.path, "last_model_path": ""}
        if score is not None:
            here |= {"kth_best_model_path": self.path, "best_k_models": {self.path: score}}
        super().load_state_dict(state_dict | here)
        self.validation = state_dict["validation"]

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:  # the exported file is of the previous best
            (Path(trainer.default_root_dir) / EXPORTED).unlink(missing_ok=True)
        super()._save_checkpoint(trainer, filepath)


class LastCheckpoint(_RunCheckpoint):
    """Saves the state of the training to ``last.ckpt`` at the end of each epoch and at each validation within one.

    Validations between the accumulated batches of one optimiser step are left out.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes files that a killed run has not finished writing."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            folder = Path(str(self.dirpath))
            for where in (folder, folder.parent):
                remove_unfinished(where / "*")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, unless the epoch ends here, which saves too, or gradients are accumulating, which are not stored."""
        loop = trainer.fit_loop.epoch_loop
        epochs: Any = trainer.fit_loop.epoch_progress.current
        within = epochs.processed < epochs.started
        if is_recorded(trainer) and not (within and (loop._num_ready_batches_reached() or loop._should_accumulate())):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_recorded(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a training that has ended within an epoch resume there, if it is continued for more steps.

        Lightning counts such an epoch as completed; this restores the loops' state after the last batch. It is not
        possible in the middle of gradient accumulation, as the accumulated gradients are not stored.
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
        """Returns nothing, as the file's name is fixed."""
        return {}


def best_checkpoint(trainer: Trainer) -> BestCheckpoint | None:
    """Returns the trainer's :class:`BestCheckpoint`, if it has one."""
    return next(iter(callbacks_of(trainer, BestCheckpoint)), None)


def _step(path: str) -> int | None:
    """Returns the step at which a checkpoint was written; None if it cannot be read."""
    try:
        return read_checkpoint(path, mmap=True).get("global_step")
    except WeightsError:
        return None
