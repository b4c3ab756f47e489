"""Random numbers that depend only on the position in the training."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage

from mobilemamba.data.sampling import global_seed


class StepSeed(Callback):
    """Seeds each epoch and each step by (seed, epoch, batch, rank) alone, with the seed of ``seed_everything`` or 0.

    Checkpoints therefore need no random state: a resumed run draws the same numbers as an uninterrupted one (Mixup,
    dropout, DropPath), even from the middle of an epoch. Our data sets seed their random numbers by picture in the same
    way, see :mod:`mobilemamba.data.sampling`; for other data sets, the workers of each epoch are seeded here, except
    persistent workers, which keep their state from epoch to epoch.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resumes after an epoch that had ended, or restores the loader's position in one that had not."""
        loop: Any = trainer.fit_loop
        epoch, epochs = loop.epoch_loop, loop.epoch_progress.current
        # A ModelCheckpoint that saves every so many steps does so before the validation after that step.
        within_step = epoch.restarted_on_train_batch_end
        validates = within_step and _validates_first(trainer)
        ended = epochs.ready == epochs.started == epochs.processed
        if loop.restarting and ended and not validates:
            # Lightning resumes within such an epoch if max_steps is set, or if the checkpoint is of its last step. The
            # epoch would be run again, empty, and counted twice, or the next one would not be counted. So this does
            # what Lightning does otherwise.
            loop._restarting = epoch.restarting = False
            loop.reset()
            epoch._batches_that_stepped += within_step
        # Lightning does this when it creates the loader. But a schedule asks for the number of steps, which creates the
        # loader before the checkpoint is read, and its position would be lost.
        loop._load_combined_loader_states()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds the epoch, before its data workers start."""
        self._seed_all(trainer, trainer.current_epoch)
        # Lightning creates the data iterator after this hook, except in the first epoch of a process: there it exists
        # already, seeded by an arbitrary state, and its workers may have started. So it is created anew.
        loop = trainer.fit_loop
        if trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting:
            iter(_fetcher(trainer))  # no public way; Lightning is pinned, a test watches it

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed_all(trainer, trainer.current_epoch, batch_idx + 1)

    def _seed_all(self, trainer: Trainer, *place: int) -> None:
        sequence = np.random.SeedSequence((global_seed() or 0, *place, trainer.global_rank))
        for_torch, for_numpy, for_random = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)  # noqa: NPY002  the generator that timm's Mixup and the transforms of others draw from
        random.seed(for_random)


def _fetcher(trainer: Trainer) -> Any:
    return trainer.fit_loop._data_fetcher


def _validates_first(trainer: Trainer) -> bool:
    """Lets Lightning resume with a validation if one is due; it would take it for done, and its epoch for ended."""
    loop: Any = trainer.fit_loop
    epoch, epochs = loop.epoch_loop, loop.epoch_progress
    before = epochs.state_dict()
    if epoch.batch_progress.is_last_batch:  # Lightning has counted its epoch
        for count in (epochs.current, epochs.total):
            count.processed -= 1
            count.completed -= 1
    if not epoch._should_check_val_fx(_fetcher(trainer)):
        epochs.load_state_dict(before)
        return False
    epoch.batch_progress.increment_completed()
    epoch.update_restart_stage()
    epoch.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    return True
