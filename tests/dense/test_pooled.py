"""Maps of another size, and averages over a grid: on a GPU under deterministic algorithms, too."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.dense.pooled import Doubling, GridMeans, resize
from tests.pretended import PretendedCard, needs_no_driver


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@needs_no_driver
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 7, 3), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (lambda x: resize(x, (13, 8)), lambda x: F.interpolate(x, (13, 8), mode="bilinear", align_corners=False)),
        (lambda x: resize(x, (3, 1)), lambda x: F.interpolate(x, (3, 1), mode="bilinear", align_corners=False)),
        (Doubling(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
        (GridMeans(1), nn.AdaptiveAvgPool2d(1)),
        (GridMeans(3), nn.AdaptiveAvgPool2d(3)),
    ],
    ids=["resize", "to a column", "doubling", "mean", "grid of means"],
)
def test_values_and_gradients_are_pytorch_s(
    shape: tuple[int, ...], ours: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> None:
        raise AssertionError("four values gathered for each")

    monkeypatch.setattr(importlib.import_module("torch._decomp.decompositions"), "_upsample_linear_vec", slow)
    x = torch.randn(shape, requires_grad=True)
    y = expected(x)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    with PretendedCard():
        there = x.detach().to("cuda").requires_grad_()
        found = ours(there)
        (found * weights.to("cuda")).sum().backward()
        assert there.grad is not None
        torch.testing.assert_close(found.cpu(), y.detach())
        torch.testing.assert_close(there.grad.cpu(), x.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_do_not_change_counts() -> None:
    """They are counted on the meta device, in a run that asks for such algorithms."""
    with FlopCounterMode(display=False) as counter:
        resize(torch.empty(1, 2, 4, 5, device="meta"), (8, 9))
        GridMeans(2)(torch.empty(1, 2, 4, 5, device="meta"))
    assert not counter.get_total_flops()
