"""LayerNorm keeps its input's dtype under autocast."""

import pytest
import torch
from torch import nn

from mobilemamba.layers.layer_norm import LayerNorm
from tests.ops.scans import assert_near


@pytest.fixture
def norm() -> LayerNorm:
    layer = LayerNorm(6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_under_autocast_it_rounds_to_the_input_s_dtype(norm: LayerNorm) -> None:
    x = (3 + torch.randn(4, 5, 6)).bfloat16().requires_grad_()
    exact = [v.detach().double().requires_grad_() for v in (x, norm.weight, norm.bias)]
    expected = nn.functional.layer_norm(exact[0], (6,), *exact[1:])
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    grad = torch.randn(y.shape).bfloat16()
    ours = torch.autograd.grad(y, [x, norm.weight, norm.bias], grad)
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for what, a, b in zip("xwb", ours, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert_near(a, b, 2**-6, what)
    assert_near(y, expected, 2**-7)


def test_under_autocast_it_needs_neither_weight_nor_bias() -> None:
    x = torch.randn(4, 6).bfloat16()
    for options in ({"bias": False}, {"elementwise_affine": False}):
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(LayerNorm(6, **options)(x), nn.functional.layer_norm(x.double(), (6,)), 2**-7)


def test_otherwise_it_is_pytorch_s(norm: LayerNorm) -> None:
    x = torch.randn(4, 5, 6)
    plain = nn.LayerNorm(6)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
