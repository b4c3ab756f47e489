"""BatchNorm's kernel against PyTorch's in double precision."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

import mobilemamba.ops.batch_norm  # noqa: F401  registers its operators
from mobilemamba.ops.native import library

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"needs the compiled kernels ({library.why_not()})"
)


def batch_norm(*arguments: Any) -> tuple[Tensor, ...]:
    return torch.ops.mobilemamba.batch_norm(*arguments)[:3]


def draw(batch: int, channels: int, height: int, width: int, offset: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, channels, height, width) * 2 + offset
    return x.contiguous(memory_format=torch.channels_last), torch.randn(channels), torch.randn(channels)


def outputs_and_gradients(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, kernel: bool, relu: bool = False
) -> list[Tensor]:
    x, weight, bias = (tensor.detach().requires_grad_() for tensor in (x, weight, bias))
    if kernel:
        y, mean, variance = batch_norm(x, weight, bias, 1e-5, relu)
    else:
        mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
        y = F.batch_norm(x, mean.detach(), variance.detach(), weight, bias, training=True, momentum=1.0, eps=1e-5)
        y = y.relu() if relu else y
    return [y, mean, variance, *torch.autograd.grad(y, (x, weight, bias), grad.to(y.dtype))]


def assert_equal_to_double(x: Tensor, weight: Tensor, bias: Tensor, unit: float = 3e-6, relu: bool = False) -> None:
    """Within ``unit``, times how much larger x is than its deviations, of what each number is summed from."""
    grad = torch.randn(x.shape)
    if relu:  # where rounding may put its input on the other side of 0 the gradients say nothing
        before = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), training=True)
        grad = grad * (before.abs() > 1e-3 * before.abs().max())
    ours = outputs_and_gradients(x, weight, bias, grad, kernel=True, relu=relu)
    theirs = outputs_and_gradients(x.double(), weight.double(), bias.double(), grad, kernel=False, relu=relu)
    inverse = (x.double().var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    condition = 1 + x.abs().amax((0, 2, 3)) * inverse
    summed = grad.abs().max() * (x.numel() / len(weight)) ** 0.5
    scales = {
        "y": weight.abs() * 3 + bias.abs(),
        "mean": x.abs().amax((0, 2, 3)),
        "variance": theirs[2] + 1e-5,
        "dx": weight.abs() * inverse * grad.abs().max(),
        "dweight": summed.expand_as(weight),
        "dbias": summed.expand_as(weight),
    }
    for (name, scale), actual, expected in zip(scales.items(), ours, theirs, strict=True):
        error = (actual.double() - expected).abs()
        error = error.amax((0, 2, 3)) if error.ndim == 4 else error
        assert (error <= unit * condition * scale + 1e-12).all(), name


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_any_shape(batch: int, channels: int, height: int, width: int, relu: bool) -> None:
    if batch * height * width > 1:
        assert_equal_to_double(*draw(batch, channels, height, width), relu=relu)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("shape", [(4, 18, 96, 96), (2, 736, 7, 7), (2, 1087, 5, 5), (3, 1, 120, 90)], ids=str)
def test_more_than_one_chunk(shape: tuple[int, int, int, int], relu: bool) -> None:
    assert_equal_to_double(*draw(*shape), relu=relu)


def test_relu_keeps_nan_visible() -> None:
    x, weight, bias = draw(2, 3, 4, 4)
    x[0, 1, 2, 2] = torch.nan
    y = batch_norm(x, weight, bias, 1e-5, True)[0]
    assert torch.equal(y.isnan().all((0, 2, 3)), torch.tensor([False, True, False]))


def test_relu_has_no_gradient_at_zero() -> None:
    x, weight, bias = draw(2, 3, 4, 4)
    weight[1] = bias[1] = 0
    *_, dx, dweight, dbias = outputs_and_gradients(x, weight, bias, torch.ones_like(x), kernel=True, relu=True)
    assert not dx[:, 1].any()
    assert dweight[1] == dbias[1] == 0


def test_large_mean_costs_no_accuracy() -> None:
    assert_equal_to_double(*draw(4, 20, 40, 40, offset=1000.0))


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
def test_bfloat16_maps(relu: bool) -> None:
    x, weight, bias = draw(4, 22, 13, 11)
    x = x.bfloat16()
    assert_equal_to_double(x, weight, bias, 2**-7, relu)
    assert batch_norm(x, weight, bias, 1e-5, relu)[0].dtype == torch.bfloat16


def test_no_weight_still_gets_a_gradient() -> None:
    """The last norm of a residual branch starts at zero."""
    x, weight, bias = draw(4, 24, 9, 9)
    assert_equal_to_double(x, torch.zeros_like(weight), bias)


def test_same_bits_for_any_number_of_threads() -> None:
    x, weight, bias = draw(8, 22, 64, 64)
    grad, threads = torch.randn_like(x), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(x, weight, bias, grad, kernel=True))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradient_in_another_layout() -> None:
    x, weight, bias = draw(2, 18, 6, 5)
    grad = torch.randn(5, 6, 18, 2).permute(3, 2, 1, 0)
    ours, same = (
        outputs_and_gradients(x, weight, bias, g, kernel=True)
        for g in (grad, grad.contiguous(memory_format=torch.channels_last))
    )
    assert torch.equal(ours[3], same[3])


def test_the_statistics_are_not_differentiable() -> None:
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = torch.ops.mobilemamba.batch_norm(x, torch.ones(4), torch.zeros(4), 1e-5, False)
    assert [part.requires_grad for part in found] == [True, False, False, False]
