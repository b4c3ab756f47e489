"""Order and randomness that depend only on (seed, epoch, picture).

A sampler passes *keys* rather than indices to the data set: ``key = epoch * len(data) + index``. One integer thus tells
the data set the epoch, even in a worker that was started epochs ago. How a picture is changed then depends neither on
the number of workers, nor on its batch, nor on interruptions of the training. If a training goes R times through the
data in each of its epochs, its sampler is for R * len(data) pictures, and the data set sees R times as many epochs.

The samplers themselves divide the pictures among the processes. They are ``DistributedSampler``s because Lightning
wraps any other kind, which would undo the marks of :class:`EvaluationSampler`.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

#: Label of a picture that does not count: one that is repeated to give all processes equal shares of an evaluation.
IGNORED = -1


def global_seed() -> int | None:
    """Returns the seed last given to ``seed_everything``."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed is not None else None


def make_generator(seed: int, *parts: int) -> torch.Generator:
    """Returns a CPU generator whose random numbers depend only on ``seed`` and ``parts`` (all >= 0)."""
    state = np.random.SeedSequence((seed, *parts)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@contextmanager
def seeded(seed: int, *parts: int) -> Iterator[None]:
    """Seeds ``random``, ``numpy`` and ``torch`` by ``seed`` and ``parts`` in the block, and restores them afterwards.

    For transforms that draw from the global generators, which the model's dropout uses too and must find unchanged.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence((seed, *parts)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 -- timm's transforms draw from the global generator
    # Not torch.manual_seed, which would also seed the accelerator's generators; a worker process must not touch them.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


class EpochSampler(DistributedSampler[int]):
    """Shuffles anew each epoch and yields this process's share of the keys, which the module's docstring describes.

    All processes draw the same order of all pictures; process r of R takes every R-th of them, starting at the r-th.
    Shares are equal, as the first pictures of the order are repeated at its end if necessary. So B pictures in each of
    R processes are the same B * R pictures as in a single process, for any R.

    Lightning calls :meth:`set_epoch` before each epoch, also after a resume, where a plain shuffle would repeat the
    order of epoch 0.

    Args:
        size: Number of pictures.
        seed: 0 or more.
        rank: Rank of this process, from 0.
        ranks: Number of processes.

    Attributes:
        start: Number of keys that iterations skip at the beginning of the share; for a resumed epoch.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(cast(Dataset[int], range(size)), num_replicas=ranks, rank=rank, seed=seed)
        self.size = size
        self.start = 0

    def keys(self, epoch: int) -> list[int]:
        """Returns this process's keys of an epoch (from 0), from the beginning of the epoch."""
        order = self.order(epoch)
        taken = order[torch.arange(self.rank, self.total_size, self.num_replicas) % self.size]
        return (taken + epoch * self.size).tolist()

    def order(self, epoch: int) -> torch.Tensor:
        """Returns the order of the pictures of all processes in an epoch, (size,) int64."""
        return torch.randperm(self.size, generator=make_generator(self.seed, epoch))

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys(self.epoch)[self.start :])


class AspectSampler(EpochSampler):
    """Shuffles like :class:`EpochSampler`, but so that the pictures of a step are all wide or all tall.

    They then need little padding to a common size. The last steps of an epoch mix the remaining pictures of both kinds.

    Args:
        wide: Which pictures are wider than tall, (size,) bool.
        batch_size: Pictures per batch and process.
        seed: 0 or more.
        rank: Rank of this process, from 0.
        ranks: Number of processes.
    """

    def __init__(self, wide: np.ndarray, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(len(wide), seed, rank, ranks)
        self.wide = torch.as_tensor(wide)
        self.step = batch_size * self.num_replicas

    def order(self, epoch: int) -> torch.Tensor:
        """Returns the order as drawn, except that each picture is delayed until its step is full."""
        order = super().order(epoch)
        wide = self.wide[order]
        # The position of the last picture in each picture's step, by which the pictures are sorted.
        full_at = torch.empty_like(order)
        for kind in (wide, ~wide):
            places = kind.nonzero()[:, 0]
            last = (torch.arange(len(places)) // self.step + 1) * self.step - 1
            full_at[places] = torch.where(last < len(places), places[last.clamp(max=len(places) - 1)], self.size)
        return order[full_at.argsort(stable=True)]


class EvaluationSampler(DistributedSampler[int], SequentialSampler):
    """Yields this process's share of the pictures in their fixed order, and marks repeats.

    Shares are equal, as processes with different numbers of batches would wait for each other forever. The keys of
    repeated pictures are ``size`` or more, by which :class:`~mobilemamba.data.batches.MarkedByKey` recognises them, so
    that no picture counts twice. By being a ``SequentialSampler`` it tells Lightning's ``overfit_batches`` that it does
    not shuffle, so that it is left in place.

    Args:
        size: Number of pictures.
        rank: Rank of this process, from 0.
        ranks: Number of processes.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(cast(Dataset[int], range(size)), num_replicas=ranks, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))
