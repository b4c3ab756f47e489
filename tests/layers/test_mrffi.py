"""MRFFI gives each mixer its channels and leaves the rest."""

import pytest
import torch
from torch import Tensor, nn

from mobilemamba.layers.mrffi import MRFFI

pytestmark = pytest.mark.kernels


class Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.seen = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.shape[1]
        return x * self.factor


@pytest.mark.parametrize("splits", [(16, 5, 3), (0, 10, 2), (16, 0, 4), (0, 0, 8), (16, 0, 0), (0, 8, 0)], ids=str)
def test_each_part_goes_its_way(splits: tuple[int, int, int]) -> None:
    global_mixer, local_mixer = Times(2), Times(3)
    mixer = MRFFI(splits, global_mixer, local_mixer).eval()
    nn.init.dirac_(mixer.proj.conv.weight)
    nn.init.ones_(mixer.proj.norm.weight)
    x = torch.rand(2, sum(splits), 4, 5)
    factors = torch.tensor([2.0, 3.0, 1.0]).repeat_interleave(torch.tensor(splits))
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), x * factors[:, None, None], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mixer(-x), torch.zeros_like(x))  # a ReLU stands before the projection
    assert (global_mixer.seen, local_mixer.seen) == splits[:2]


def test_starts_as_nothing() -> None:
    assert not MRFFI((16, 4, 4), Times(2), Times(3)).eval()(torch.randn(1, 24, 3, 3)).any()
