"""Order and randomness that depend on (seed, epoch, picture) alone.

A sampler hands the data set *keys* rather than indices: ``key = epoch * len(data) + index``. One integer thus tells the
data set the epoch, in the main process and in a worker that was started epochs ago. What a picture looks like then
depends neither on the number of workers, nor on the batch it is in, nor on whether training was interrupted before.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


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


class EpochSampler(Sampler[int]):
    """Shuffles anew each epoch; yields the keys of the module's docstring.

    Lightning calls :meth:`set_epoch` before each epoch, also after a resume, where a plain shuffle would repeat the
    order of epoch 0. Under a distributed strategy Lightning wraps the sampler and passes the call on.

    Args:
        size: Number of pictures.
        seed: 0 or more.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of epoch ``epoch`` (from 0) for the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=make_generator(self.seed, self.epoch))
        return iter((order + self.epoch * self.size).tolist())

    def __len__(self) -> int:
        return self.size
