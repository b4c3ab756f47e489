"""Networks of timm's with their norms folded."""

import pytest
import timm
import torch
from torch import nn

from mobilemamba.analysis.benchmark.folding import fold_norms
from mobilemamba.models.fuse import count_batch_norms


def lively(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


# Norms with an activation inside, plain ones of a Sequential, and such as timm folds itself.
@pytest.mark.parametrize("name", ["test_efficientnet", "lcnet_035", "test_resnet", "efficientvit_m0"])
def test_no_norm_is_left_and_the_outputs_are_the_same(name: str) -> None:
    network, pictures = lively(timm.create_model(name)), torch.randn(2, 3, 224, 224)
    folded = fold_norms(network, pictures[:1])
    assert count_batch_norms(network) > 0
    assert count_batch_norms(folded) == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(pictures), network(pictures), rtol=1e-4, atol=1e-4)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv(x)
        return [self.norm(x), x]


def test_a_convolution_that_is_read_twice_stays_as_it_is() -> None:
    network, pictures = lively(TwoReaders()), torch.randn(1, 3, 8, 8)
    folded = fold_norms(network, pictures)
    assert count_batch_norms(folded) == 1
    for given, expected in zip(folded(pictures), network(pictures), strict=True):
        assert torch.equal(given, expected)


def test_features_as_a_list() -> None:
    network = lively(timm.create_model("test_resnet", features_only=True))
    assert count_batch_norms(fold_norms(network, torch.randn(1, 3, 64, 64))) == 0
