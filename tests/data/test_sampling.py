import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from mobilemamba.data.sampling import AspectSampler, EpochSampler, EvaluationSampler, make_generator, seeded

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


@given(size=st.integers(1, 60), ranks=st.integers(1, 7), epoch=st.integers(0, 20))
def test_processes_share_an_epoch(size: int, ranks: int, epoch: int) -> None:
    whole = EpochSampler(size, 3).keys(epoch)
    shares = [EpochSampler(size, 3, rank, ranks).keys(epoch) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(EpochSampler(size, 3, 0, ranks))} == {-(-size // ranks)}
    # Dealt out in turn: the first n of each process are the first n * ranks of the whole order, then its beginning.
    dealt = [shares[place % ranks][place // ranks] for place in range(sum(map(len, shares)))]
    assert dealt == [whole[place % size] for place in range(len(dealt))]


def test_start_leaves_out_the_beginning_and_no_more() -> None:
    sampler = EpochSampler(20, 3, 1, 2)
    sampler.set_epoch(5)
    sampler.start = 4
    assert list(sampler) == sampler.keys(5)[4:]
    assert len(sampler) == 10


@given(size=st.integers(1, 60), ranks=st.integers(1, 7))
def test_an_evaluation_counts_each_picture_once(size: int, ranks: int) -> None:
    shares = [list(EvaluationSampler(size, rank, ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(EvaluationSampler(size, 0, ranks))} == {-(-size // ranks)}
    keys = [key for share in shares for key in share]
    assert sorted(key for key in keys if key < size) == list(range(size))


def test_the_order_of_an_evaluation_is_fixed() -> None:
    sampler = EvaluationSampler(7, 1, 2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == [1, 3, 5, 7]


def test_lightning_wraps_neither() -> None:
    assert isinstance(EpochSampler(4), DistributedSampler)
    assert isinstance(EvaluationSampler(4), DistributedSampler)


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


@given(size=st.integers(1, 80), batch=st.integers(1, 5), ranks=st.integers(1, 3), seed=seeds)
def test_steps_are_wide_or_tall(size: int, batch: int, ranks: int, seed: int) -> None:
    wide = np.random.default_rng(seed).random(size) < 0.7
    order = AspectSampler(wide, batch, seed).keys(3)
    assert sorted(key % size for key in order) == list(range(size))
    shares = [AspectSampler(wide, batch, seed, rank, ranks).keys(3) for rank in range(ranks)]
    starts = range(0, len(shares[0]), batch)
    steps = [[key for share in shares for key in share[start : start + batch]] for start in starts]
    whole = wide.sum() // (batch * ranks) + (~wide).sum() // (batch * ranks)
    assert all(len({bool(wide[key % size]) for key in step}) == 1 for step in steps[:whole])


def test_pictures_wait_for_their_step_alone() -> None:
    wide = np.arange(400) % 4 > 0
    plain, by_aspect = EpochSampler(400, 5).keys(2), AspectSampler(wide, 4, 5).keys(2)
    assert plain != by_aspect
    moved = [abs(plain.index(key) - by_aspect.index(key)) for key in plain]
    assert sum(moved) / len(moved) < 10
    assert by_aspect == AspectSampler(wide, 4, 5).keys(2) != AspectSampler(wide, 4, 5).keys(3)
