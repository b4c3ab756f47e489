import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

from mobilemamba.data.sampling import EpochSampler, make_generator, seeded

seeds = st.integers(0, 2**32)


@given(size=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_holds_each_picture_once_and_its_number(size: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(size, seed)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler) == size
    assert {key // size for key in keys} == {epoch}
    assert sorted(key % size for key in keys) == list(range(size))


@given(seed=seeds, epoch=st.integers(0, 50))
def test_order_depends_on_seed_and_epoch_alone(seed: int, epoch: int) -> None:
    walked, fresh = EpochSampler(50, seed), EpochSampler(50, seed)
    for earlier in range(0, epoch, 7):
        walked.set_epoch(earlier)
        list(walked)
    torch.rand(3)
    for sampler in (walked, fresh):
        sampler.set_epoch(epoch)
    assert list(walked) == list(fresh) == list(fresh)


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = set()
    for seed in range(3):
        sampler = EpochSampler(100, seed)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            orders.add(tuple(key % 100 for key in sampler))
    assert len(orders) == 12


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=4, unique=True))
def test_generators_of_different_parts_differ(parts: list[int]) -> None:
    first, second = make_generator(*parts), make_generator(*reversed(parts))
    assert not torch.equal(torch.rand(8, generator=first), torch.rand(8, generator=second))


def test_processes_share_an_epoch() -> None:
    keys = []
    for rank in range(2):
        sampler = DistributedSamplerWrapper(EpochSampler(10, 3), num_replicas=2, rank=rank)
        sampler.set_epoch(4)  # as Lightning does
        keys += list(sampler)
    assert sorted(keys) == list(range(40, 50))


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seeded_fixes_all_streams_and_puts_them_back() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    undisturbed = [draw(), draw()]

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = draw()
    with seeded(3, 4):
        inside = draw()
    second = draw()
    with seeded(3, 4):
        again = draw()
    with seeded(4, 3):
        other = draw()

    assert [first, second] == undisturbed
    assert inside == again != other
