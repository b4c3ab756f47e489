"""TTT-Linear: the loop against gradient descent by autograd, the dual form against the loop."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.ops.ttt_linear import EPS, ttt_linear, ttt_linear_reference
from tests.ops.recurrences import LENGTHS, assert_same


def make_inputs(batch: int, directions: int, heads: int, length: int, width: int, mini_batch: int = 16) -> list[Tensor]:
    shape = (batch, directions, heads, length, width)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    rate, share = torch.rand(shape[:-1], dtype=torch.float64) / width, torch.rand(mini_batch, dtype=torch.float64)
    weight = 0.5 * torch.randn(heads, width, width, dtype=torch.float64)
    return [q, k, v, rate, share, weight, *(torch.randn(heads, width, dtype=torch.float64) for _ in range(3))]


def test_with_mini_batches_of_one_it_is_gradient_descent() -> None:
    """Each token: a step down the loss of the whole model's own output, then the answer of the model."""
    q, k, v, rate, share, weight, bias, gain, shift = make_inputs(1, 1, 1, 5, 4, mini_batch=1)
    W, b = weight[0].clone().requires_grad_(), bias[0].clone().requires_grad_()

    def model(x: Tensor) -> Tensor:
        return x + F.layer_norm(x @ W + b, (4,), gain[0], shift[0], EPS)

    expected = []
    for t in range(5):
        loss = (model(k[0, 0, 0, t]) - v[0, 0, 0, t]).square().sum() / 2
        step = rate[0, 0, 0, t] * share[0]
        with torch.no_grad():
            W_grad, b_grad = torch.autograd.grad(loss, (W, b))
            W -= step * W_grad
            b -= step * b_grad
            expected.append(model(q[0, 0, 0, t]))
    y = ttt_linear_reference(q, k, v, rate, share, weight, bias, gain, shift)
    torch.testing.assert_close(y[0, 0, 0], torch.stack(expected))


def test_gradients_are_taken_at_the_start_of_a_mini_batch() -> None:
    """In the first mini-batch the last token sees the sum of all gradients at the initial map."""
    q, k, v, rate, share, weight, bias, gain, shift = make_inputs(1, 1, 1, 4, 3, mini_batch=4)
    W, b = weight[0].clone().requires_grad_(), bias[0].clone().requires_grad_()
    keys, values, rates = k[0, 0, 0], v[0, 0, 0], rate[0, 0, 0]
    losses = (F.layer_norm(keys @ W + b, (3,), gain[0], shift[0], EPS) - (values - keys)).square().sum(-1) / 2
    W_grad, b_grad = torch.autograd.grad((rates * losses).sum(), (W, b))
    query = q[0, 0, 0, 3]
    z = query @ (W - share[3] * W_grad) + b - share[3] * b_grad
    expected = query + F.layer_norm(z, (3,), gain[0], shift[0], EPS)
    for form in (ttt_linear_reference, ttt_linear):
        y = form(q, k, v, rate, share, weight, bias, gain, shift)
        torch.testing.assert_close(y[0, 0, 0, 3], expected)


def test_without_a_rate_it_is_a_fixed_map() -> None:
    q, k, v, rate, share, weight, bias, gain, shift = make_inputs(2, 2, 2, 9, 4)
    y = ttt_linear(q, k, v, torch.zeros_like(rate), share, weight, bias, gain, shift)
    z = torch.einsum("bknlf,nfg->bknlg", q, weight) + bias[:, None]
    torch.testing.assert_close(y, q + F.layer_norm(z, (4,), eps=EPS) * gain[:, None] + shift[:, None])


@pytest.mark.parametrize("length", LENGTHS)
def test_dual_form_equals_the_loop(length: int) -> None:
    assert_same(ttt_linear, ttt_linear_reference, make_inputs(2, 2, 2, length, 4))


@settings(max_examples=25)
@given(*(st.integers(1, high) for high in (3, 2, 3, 40)), st.integers(2, 5), st.integers(1, 20))
def test_dual_form_equals_the_loop_for_any_shape(
    b: int, k: int, n: int, length: int, width: int, mini_batch: int
) -> None:
    inputs = make_inputs(b, k, n, length, width, mini_batch)
    # In heads of two the norm gives -1 or 1, and its slope between them is steep: the same error counts for more.
    assert_same(ttt_linear, ttt_linear_reference, inputs, tolerance=1e-8 if width > 2 else 1e-4)


def test_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(1, 2, 1, 6, 3, mini_batch=4)]
    assert torch.autograd.gradcheck(ttt_linear, inputs)


def test_counted_as_published() -> None:
    q, k, v, rate, share, weight, *rest = (x.to("meta") for x in make_inputs(2, 2, 10, 196, 16))
    with FlopCounterMode(display=False) as counter:
        ttt_linear(q, k, v, rate, share, weight, *rest)
    assert counter.get_total_flops() / 2 == 2 * (2 * (3 * 16 + 3 * 16) * 160 * 196)
