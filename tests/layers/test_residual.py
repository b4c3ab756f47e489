"""x + f(x), and one convolution for it where f is depthwise."""

import pytest
import torch
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.ffn import FFN
from mobilemamba.layers.residual import Residual

pytestmark = pytest.mark.kernels


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_adds_the_branch() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(Residual(Double())(x), 3 * x)


def test_drop_path_takes_the_branch_only() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(Residual(Double(), drop_path=nn.Dropout(1.0)).train()(x), x)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_depthwise_branch_fuses_exactly(kernel_size: int) -> None:
    branch = ConvNorm(6, 6, kernel_size, groups=6)
    branch.norm.running_mean.normal_()
    branch.norm.running_var.uniform_(0.1, 2)
    layer, x = Residual(branch).double().eval(), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    fused = layer.fuse()
    assert type(fused) is nn.Conv2d
    with torch.no_grad():
        torch.testing.assert_close(fused(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "branch",
    [FFN(8), ConvNorm(8, 8, 3), ConvNorm(8, 8, 3, groups=4), ConvNorm(8, 8, 3, groups=8, relu=True)],
    ids=["ffn", "full convolution", "groups of channels", "depthwise with ReLU"],
)
def test_another_branch_stays_residual(branch: nn.Module) -> None:
    layer = Residual(branch)
    assert layer.fuse() is layer


def test_a_fresh_ffn_is_nothing() -> None:
    assert not FFN(8).eval()(torch.randn(2, 8, 3, 3)).any()


def test_ffn_ratio() -> None:
    assert FFN(8, ratio=3).pw1.conv.out_channels == 24
