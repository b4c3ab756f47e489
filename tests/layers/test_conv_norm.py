"""Folding a norm into its convolution or linear layer is exact."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.layers.conv_norm import ConvNorm, ConvReLU, NormLinear, fuse_conv_norm

pytestmark = pytest.mark.kernels


def trained(module: nn.Module) -> nn.Module:
    """In evaluation mode, its norms as after training; fp64, where folding leaves no doubt."""
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return module.double().eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 1},
        {"stride": 2},
        {"kernel_size": 3, "stride": 2, "relu": True},
        {"kernel_size": 5, "groups": 4},
        {"kernel_size": 3, "dilation": 2},
    ],
    ids=str,
)
def test_conv_norm_fuses_exactly(arguments: dict[str, Any]) -> None:
    layer, x = trained(ConvNorm(8, 12, **arguments)), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    fused = layer.fuse()
    assert type(fused) is (ConvReLU if arguments.get("relu") else nn.Conv2d)
    assert fused.weight.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(fused(x), layer(x), rtol=1e-12, atol=1e-12)


def test_relu_comes_last() -> None:
    layer, x = ConvNorm(4, 6, 3, relu=True).eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.norm(layer.conv(x)).relu())


def test_relu_stays_where_the_norm_is_another() -> None:
    """Lightning's ``sync_batchnorm`` puts PyTorch's SyncBatchNorm in the place of every BatchNorm."""
    layer, x = ConvNorm(4, 6, 3, relu=True).eval(), torch.randn(2, 4, 5, 5)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert isinstance(synchronised.norm, nn.SyncBatchNorm)
    with torch.no_grad():
        torch.testing.assert_close(synchronised(x), layer(x))


def test_a_convolution_with_bias_fuses_exactly() -> None:
    layer = trained(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fuse_conv_norm(*layer)(x), layer(x), rtol=1e-12, atol=1e-12)


def test_norm_linear_fuses_exactly() -> None:
    layer, x = trained(NormLinear(8, 5)), torch.randn(3, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer.fuse()(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "name"), [(ConvNorm(4, 6, 3), "conv"), (NormLinear(8, 5), "linear")])
def test_what_computes_its_weight_is_not_folded(layer: ConvNorm | NormLinear, name: str) -> None:
    nn.utils.parametrizations.weight_norm(getattr(layer, name))
    assert layer.fuse() is layer


def test_no_classes_make_the_identity() -> None:
    layer, x = NormLinear(8, 0), torch.randn(3, 8)
    assert layer(x) is x
    assert layer.fuse()(x) is x
    assert not list(layer.parameters())


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("groups", "height"), [(1, 1), (64, 1), (64, 3)])
def test_padding_gives_no_gradient(groups: int, height: int, autocast: bool) -> None:
    """On CPUs that multiply bfloat16, oneDNN left whatever was in memory where a kernel meets only padding."""
    layer, x = ConvNorm(64, 64, 3, 2, groups), torch.randn(8, height, 1, 64).permute(0, 3, 1, 2)
    layer.norm = nn.Identity()
    expected = torch.autograd.grad(layer(x).sum(), layer.conv.weight)[0]
    layer, x = (layer, x) if autocast else (layer.bfloat16(), x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = layer(x).float().sum()
    del [torch.full((2**size,), 1e38) for size in range(6, 18) for _ in range(4)][:]  # leaves this in memory
    gradient = torch.autograd.grad(loss, layer.conv.weight)[0].float()
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_gain_is_the_norm_s_start(gain: float) -> None:
    assert (ConvNorm(4, 4, 3, gain=gain).norm.weight == gain).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 8)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_size_is_kept(kernel_size: int, size: tuple[int, int]) -> None:
    assert ConvNorm(4, 4, kernel_size).eval()(torch.randn(1, 4, *size)).shape == (1, 4, *size)
