"""RWKV-6: the loop against the equation, the chunked form against the loop."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.ops.rwkv6 import rwkv6, rwkv6_reference
from tests.ops.recurrences import LENGTHS, assert_same


def make_inputs(batch: int, directions: int, heads: int, length: int, width: int, spread: float = 1.0) -> list[Tensor]:
    shape = (batch, directions, heads, length, width)
    r, k, v, omega = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    return [r, k, v, -torch.exp(spread * omega), torch.randn(directions, heads, width, dtype=torch.float64)]


def test_the_loop_computes_the_equation() -> None:
    """Every output summed over pairs of steps, with the decays multiplied between them."""
    r, k, v, log_decay, bonus = (x.numpy() for x in make_inputs(1, 2, 2, 5, 3))
    y = rwkv6_reference(*make_tensors(r, k, v, log_decay, bonus)).numpy()
    for d, n, t, j in itertools.product(range(2), range(2), range(5), range(3)):
        expected = 0.0
        for i, s in itertools.product(range(3), range(t + 1)):
            between = math.exp(sum(log_decay[0, d, n, s + 1 : t, i])) if s < t else bonus[d, n, i]
            expected += r[0, d, n, t, i] * between * k[0, d, n, s, i] * v[0, d, n, s, j]
        assert y[0, d, n, t, j] == pytest.approx(expected, rel=1e-10)


def make_tensors(*arrays: object) -> list[Tensor]:
    return [torch.as_tensor(array) for array in arrays]


def test_by_hand() -> None:
    """One channel whose memory halves: 1 is written at each step, and read without the step itself (bonus 0)."""
    ones = torch.ones(1, 1, 1, 4, 1, dtype=torch.float64)
    y = rwkv6(ones, ones, ones, math.log(0.5) * ones, torch.zeros(1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(y.flatten(), torch.tensor([0, 1, 1.5, 1.75], dtype=torch.float64))


@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_the_loop(length: int) -> None:
    assert_same(rwkv6, rwkv6_reference, make_inputs(2, 2, 3, length, 4))


@settings(max_examples=25)
@given(*(st.integers(1, high) for high in (3, 2, 3, 40, 5)), st.floats(0.1, 3))
def test_chunked_equals_the_loop_for_any_shape(b: int, k: int, n: int, length: int, width: int, spread: float) -> None:
    assert_same(rwkv6, rwkv6_reference, make_inputs(b, k, n, length, width, spread))


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 1, 18, 2)]
    assert torch.autograd.gradcheck(rwkv6, inputs)


@pytest.mark.parametrize("log_decay", [-1e4, -1e-8], ids=["forgets all", "keeps all"])
def test_extreme_decays_in_single_precision(log_decay: float) -> None:
    r, k, v, decay, bonus = make_inputs(1, 2, 1, 300, 4)
    inputs = [x.float() for x in (r, k, v, torch.full_like(decay, log_decay), bonus)]
    assert_same(rwkv6, rwkv6_reference, inputs, tolerance=1e-3)
    y = rwkv6(*inputs)
    assert y.isfinite().all()
    if log_decay < -1:  # each step reads the step before it and itself
        short = rwkv6(*(x[..., 8:10, :] for x in inputs[:4]), inputs[4])
        torch.testing.assert_close(y[..., 9, :], short[..., 1, :])


def test_counted_as_the_recurrence() -> None:
    shape = (2, 2, 10, 196, 16)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        rwkv6(*(torch.empty(shape) for _ in range(4)), torch.empty(2, 10, 16))
    assert counter.get_total_flops() / 2 == 2 * (2 * 3 * 16 * 160 * 196)  # two pictures, two directions
