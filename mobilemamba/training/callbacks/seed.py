"""Random numbers that depend only on the position in the training."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mobilemamba.data.sampling import global_seed


class StepSeed(Callback):
    """Seeds each epoch and each step by (seed, epoch, batch, rank) alone.

    Checkpoints therefore need no random state: a resumed run draws the same numbers as an uninterrupted one (Mixup,
    dropout, DropPath), even from the middle of an epoch. Our data sets seed their random numbers by picture in the same
    way, see :mod:`mobilemamba.data.sampling`; for other data sets, the workers of each epoch are seeded here, except
    persistent workers, which keep their state from epoch to epoch.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Sets the seed.

        Args:
            seed: By default the seed given to ``seed_everything``, or 0 if there was none.
        """
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resumes after an epoch that had ended, or restores the loader's position in one that had not."""
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        ended = epochs.ready == epochs.started == epochs.processed
        if loop.restarting and ended and not loop.epoch_loop.restarted_on_train_batch_end:
            # With max_steps, Lightning resumes within every epoch: one that had ended would be run again, empty, and be
            # counted twice. So this does what Lightning does without max_steps.
            loop._restarting = loop.epoch_loop.restarting = False
            loop.reset()
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
            iter(loop._data_fetcher)  # type: ignore[arg-type]  # no public way; Lightning is pinned, a test watches it

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed_all(trainer, trainer.current_epoch, batch_idx + 1)

    def _seed_all(self, trainer: Trainer, *place: int) -> None:
        seed = self.seed if self.seed is not None else global_seed() or 0
        sequence = np.random.SeedSequence((seed, *place, trainer.global_rank))
        for_torch, for_numpy, for_random = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)  # noqa: NPY002  the generator that timm's Mixup and the transforms of others draw from
        random.seed(for_random)
