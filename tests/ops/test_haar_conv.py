"""The compiled convolution in Haar's wavelet domain against its definition by plain convolutions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobilemamba.ops.native import library
from mobilemamba.ops.wavelet import native
from mobilemamba.ops.wavelet.definition import haar_filters, wavelet_conv

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=f"no compiled kernels: {library.why_not()}")


def haar_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    return native.forward(x_BHWC.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)


def definition(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    filters = haar_filters(x_BHWC.shape[-1], x_BHWC)
    return wavelet_conv(x_BHWC.permute(0, 3, 1, 2), weight, filters, filters).permute(0, 2, 3, 1)


def assert_same(x: Tensor, weight: Tensor) -> None:
    inputs = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    y, expected = haar_conv(*inputs), definition(*exact)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 3, 5, 7]))
def test_any_shape(batch: int, height: int, width: int, channels: int, kernel: int) -> None:
    assert_same(torch.randn(batch, height, width, channels), torch.randn(4 * channels, 1, kernel, kernel))


@pytest.mark.parametrize(("side", "channels", "kernel"), [(12, 115, 7), (7, 190, 5), (3, 221, 3)])
def test_the_network_s_shapes(side: int, channels: int, kernel: int) -> None:
    assert_same(torch.randn(2, side, side, channels), torch.randn(4 * channels, 1, kernel, kernel))


def test_slices_and_transposed_maps() -> None:
    weight = torch.randn(80, 1, 3, 3)
    assert_same(torch.randn(2, 5, 6, 33)[..., 4:24], weight)
    assert_same(torch.randn(2, 20, 5, 6).permute(0, 2, 3, 1), weight)


def test_bfloat16_is_computed_in_single_precision() -> None:
    x, weight = torch.randn(2, 7, 5, 20).bfloat16(), torch.randn(80, 1, 3, 3)
    y = haar_conv(x, weight)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), definition(x.float(), weight), rtol=8e-3, atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    x, weight = torch.randn(3, 6, 6, 50, requires_grad=True), torch.randn(200, 1, 5, 5, requires_grad=True)

    def run() -> list[Tensor]:
        y = haar_conv(x, weight)
        return [y, *torch.autograd.grad(y, [x, weight], torch.ones_like(y))]

    expected = run()
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_nan_stays_within_reach_of_the_kernel() -> None:
    x = torch.randn(1, 12, 12, 16)
    x[0, 0, 0, 3] = torch.nan
    y = haar_conv(x, torch.randn(64, 1, 3, 3))
    assert y[0, :4, :4, 3].isnan().all()
    assert y.isnan().sum() == 16


def test_it_is_an_operator_that_compilers_understand() -> None:
    x, weight = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(20, 1, 3, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.mobilemamba.haar_conv.default, (x, weight))
