"""Order and randomness that depend on (seed, epoch, picture) alone.

A sampler hands the data set *keys* rather than indices: ``key = epoch * len(data) + index``. One integer thus tells the
data set the epoch, in the main process and in a worker that was started epochs ago. What a picture looks like then
depends neither on the number of workers, nor on the batch it is in, nor on whether training was interrupted before.

The samplers share the pictures among the processes themselves. They are ``DistributedSampler``s because Lightning
wraps any other kind, which would undo the marks of :class:`EvaluationSampler`.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

#: Label of a picture that does not count: a repeat that fills up the processes' equal shares of a validation.
IGNORED = -1


def make_generator(seed: int, *parts: int) -> torch.Generator:
    """Return a generator on the CPU whose stream is a function of ``seed`` and ``parts`` (all >= 0)."""
    state = np.random.SeedSequence((seed, *parts)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@contextmanager
def seeded(seed: int, *parts: int) -> Iterator[None]:
    """Seed ``random``, ``numpy`` and ``torch`` from ``seed`` and ``parts`` in the block, and put them back after it.

    For transforms that draw from the global streams: the model's dropout draws from the same ones and must not notice.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence((seed, *parts)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 -- timm's transforms draw from the global stream
    # Not torch.manual_seed: that would also touch the accelerator's streams, which a worker process must not.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


class EpochSampler(DistributedSampler[int]):
    """Shuffles anew each epoch and yields this process's share of the keys of the module's docstring.

    All processes draw the same order of all pictures; of it, process r of R takes every R-th from the r-th on. Shares
    are equal: the first pictures of the order fill up the last round. So B pictures in each of R processes are the same
    B * R pictures as in one process, whatever R.

    Lightning calls :meth:`set_epoch` before each epoch, also after a resume, where a plain shuffle would repeat the
    order of epoch 0.

    Args:
        size: Number of pictures.
        seed: 0 or more.
        rank: Of this process, from 0.
        ranks: Number of processes.
        shards: Of each picture, the number of the file it lies in, from 0; (size,). Needed by ``window`` alone.
        window: If given, shuffles the files, and then the pictures within each run of so many files. Reading is then
            local: only so many files are in use at a time.

    Attributes:
        start: The next iterations leave out so many keys at the beginning of the share; for a resumed epoch.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        shards: Sequence[int] | np.ndarray | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(cast(Dataset[int], range(size)), num_replicas=ranks, rank=rank, seed=seed)
        self.size = size
        self.shards = None if shards is None or window is None else torch.as_tensor(shards).long()
        self.window = window
        self.start = 0

    def keys(self, epoch: int) -> list[int]:
        """This process's keys in epoch ``epoch`` (from 0), from the beginning of the epoch."""
        order = self.order(epoch)
        taken = order[torch.arange(self.rank, self.total_size, self.num_replicas) % self.size]
        return (taken + epoch * self.size).tolist()

    def order(self, epoch: int) -> torch.Tensor:
        """The pictures of all processes in epoch ``epoch``, (size,) int64."""
        generator = make_generator(self.seed, epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.shards is not None and self.window is not None:
            shard_order = torch.randperm(int(self.shards.max()) + 1, generator=generator)
            window_of = shard_order.argsort() // self.window
            order = order[window_of[self.shards[order]].argsort(stable=True)]
        return order

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys(self.epoch)[self.start :])


class AspectSampler(EpochSampler):
    """Shuffles as :class:`EpochSampler`, but such that the pictures of a step are all wide, or all tall.

    Padded to one size, they then have little padding. What is left of both at the end of an epoch is mixed.

    Args:
        wide: Which pictures are wider than tall, (size,) bool.
        batch_size: Pictures in a batch of one process.
        seed: 0 or more.
        rank: Of this process, from 0.
        ranks: Number of processes.
    """

    def __init__(self, wide: np.ndarray, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(len(wide), seed, rank, ranks)
        self.wide = torch.as_tensor(wide)
        self.step = batch_size * self.num_replicas

    def order(self, epoch: int) -> torch.Tensor:
        """As it is drawn, but that a picture waits until its step is full."""
        order = super().order(epoch)
        wide = self.wide[order]
        # Of each picture, how many of its kind stand before it, and where the last of its step stands.
        full_at = torch.empty_like(order)
        for kind in (wide, ~wide):
            places = kind.nonzero()[:, 0]
            last = (torch.arange(len(places)) // self.step + 1) * self.step - 1
            full_at[places] = torch.where(last < len(places), places[last.clamp(max=len(places) - 1)], self.size)
        return order[full_at.argsort(stable=True)]


class EvaluationSampler(DistributedSampler[int]):
    """Yields this process's share of the pictures in their fixed order, and marks repeats.

    Shares are equal, as processes that evaluate unequal numbers of batches would wait for each other for ever. The keys
    that fill up the last round are ``size`` or more: by them :class:`~mobilemamba.data.batches.MarkedByKey` tells the
    repeats, so that no picture counts twice.

    Args:
        size: Number of pictures.
        rank: Of this process, from 0.
        ranks: Number of processes.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(cast(Dataset[int], range(size)), num_replicas=ranks, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))
