"""The mLSTM: the loop against the equation, the parallel and chunked forms against the loop."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.ops.mlstm import CHUNK, mlstm, mlstm_chunked, mlstm_reference
from tests.ops.recurrences import LENGTHS, assert_same


def make_inputs(batch: int, directions: int, heads: int, length: int, width: int, spread: float = 3.0) -> list[Tensor]:
    shape = (batch, directions, heads, length, width)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    return [q, k, v, *(spread * torch.randn(shape[:-1], dtype=torch.float64) for _ in range(2))]


def test_the_loop_computes_the_equation() -> None:
    """Without the stabiliser: memory and normaliser as they are, the normaliser's reading at least 1."""
    q, k, v, input_gate, forget_gate = make_inputs(2, 2, 2, 6, 3)
    memory, normaliser = torch.zeros(2, 2, 2, 3, 3, dtype=torch.float64), torch.zeros(2, 2, 2, 3, dtype=torch.float64)
    floors = 0
    y = mlstm_reference(q, k, v, input_gate, forget_gate)
    for t in range(6):
        i, f = input_gate[..., t, None].exp(), forget_gate[..., t, None].sigmoid()
        key = k[..., t, :] / 3**0.5
        memory = f[..., None] * memory + torch.einsum("bknx,bkni,bknj->bknij", i, key, v[..., t, :])
        normaliser = f * normaliser + i * key
        norm = torch.einsum("bkni,bkni->bkn", normaliser, q[..., t, :]).abs()
        expected = torch.einsum("bknij,bkni->bknj", memory, q[..., t, :]) / norm.clamp(min=1)[..., None]
        torch.testing.assert_close(y[..., t, :], expected)
        floors += int((norm < 1).sum())
    assert 0 < floors < 48  # both sides of the maximum were met


def test_by_hand() -> None:
    """Gates of weight 1 and 1/2: the normaliser is what the memory of ones is, so values come out as a mean."""
    ones = torch.ones(1, 1, 1, 3, 1, dtype=torch.float64)
    v = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64).reshape_as(ones)
    y = mlstm(ones, ones, v, torch.zeros(1, 1, 1, 3, dtype=torch.float64), torch.zeros(1, 1, 1, 3, dtype=torch.float64))
    torch.testing.assert_close(y.flatten(), torch.tensor([2, 5 / 1.5, 10.5 / 1.75], dtype=torch.float64))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", [10, CHUNK])
def test_chunked_equals_the_loop(length: int, chunk: int) -> None:
    assert_same(partial(mlstm_chunked, chunk=chunk), mlstm_reference, make_inputs(2, 2, 2, length, 4))


@settings(max_examples=25)
# Wider gates let the normaliser's terms cancel, and then the two forms differ by more than rounding.
@given(*(st.integers(1, high) for high in (3, 2, 3, 40, 5, 45)), st.floats(0.1, 3))
def test_chunked_equals_the_loop_for_any_shape(
    b: int, k: int, n: int, length: int, width: int, chunk: int, spread: float
) -> None:
    inputs = make_inputs(b, k, n, length, width, spread)
    assert_same(partial(mlstm_chunked, chunk=chunk), mlstm_reference, inputs, tolerance=1e-8)


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 1, 7, 2, spread=1.0)]
    assert torch.autograd.gradcheck(mlstm, inputs)


@pytest.mark.parametrize("gate", [-200.0, 200.0])
def test_extreme_gates_in_single_precision(gate: float) -> None:
    """Their exponentials are out of fp32's range; the results are not."""
    q, k, v, input_gate, forget_gate = (x.float() for x in make_inputs(1, 2, 1, 300, 4, spread=1.0))
    inputs = [x.requires_grad_() for x in (q, k, v, input_gate + gate, forget_gate)]
    y = mlstm(*inputs)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs if x.grad is not None)
    if gate < 0:
        assert not y.any()  # nothing was written
    else:  # far above the floor of 1, so a common factor of all inputs falls out
        other = mlstm(q, k, v, input_gate + 100, forget_gate)
        assert (y - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("length", [49, 196, 256, 600])
def test_counted_as_the_parallel_form(length: int) -> None:
    shape = (2, 2, 10, length, 16)
    inputs = [torch.empty(shape, device="meta") for _ in range(3)] + [torch.empty(shape[:-1], device="meta")] * 2
    with FlopCounterMode(display=False) as counter:
        mlstm(*inputs)
    pairs = length**2 if length <= 256 else 2 * 256**2 + 88**2
    carried = 2 * 16 * max(length - 256, 0)
    assert counter.get_total_flops() / 2 == 2 * 2 * 160 * (2 * pairs + carried)
