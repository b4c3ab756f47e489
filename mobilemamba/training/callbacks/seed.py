"""Random numbers that depend on the place in the training alone."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Gives each epoch and each step random numbers of its own, from (seed, epoch, batch, rank) alone.

    So no random state has to be kept in a checkpoint: a resumed run draws what an uninterrupted one draws (Mixup,
    dropout, DropPath), also from the middle of an epoch. What the data set draws, its loader and
    :mod:`mobilemamba.data.sampling` tie to the picture in the same way; for other data sets each epoch's workers are
    seeded here. Out of reach are persistent workers of such data sets, which keep their state from epoch to epoch.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Sets the seed.

        Args:
            seed: By default the one given to ``seed_everything``, or 0 if there was none.
        """
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on behind an epoch that had ended, and gives the loader its place in one that had not."""
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        ended = epochs.ready == epochs.started == epochs.processed
        if loop.restarting and ended and not loop.epoch_loop.restarted_on_train_batch_end:
            # Where there are max_steps, Lightning takes every epoch for one to be gone on with: one that had ended
            # would be run once more, empty, and count twice. So here is what it does where there are none.
            loop._restarting = loop.epoch_loop.restarting = False
            loop.reset()
        # Lightning does this when it makes the loader. A task that asks for the number of steps, as a schedule must,
        # has the loader made before the checkpoint is read; the place would be lost.
        loop._load_combined_loader_states()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds the epoch, before its data workers start."""
        self._seed_all(trainer, trainer.current_epoch)
        # Lightning makes the data iterator after this hook, except in the first epoch of a process: that one was made
        # before, from whatever state there was, and its workers may be at work already.
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


def global_seed() -> int | None:
    """The seed last given to ``seed_everything``."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed is not None else None
