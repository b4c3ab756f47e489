"""Batch norms that share their statistics among processes."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.training.callbacks.sync_norms import SyncNorms


@pytest.mark.parametrize("norm", [BatchNormAct2d(6), ConvNorm(6, 6, relu=True), nn.BatchNorm2d(6)])
def test_all_but_the_statistics_stays_as_it_is(norm: nn.Module) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 6, 1), norm), torch.randn(2, 3, 4, 4)
    kinds, weights = [type(part) for part in model.modules()], [*model.parameters()]
    sync, expected = SyncNorms(), copy.deepcopy(model).eval()(x)
    shared = sync.apply(model).eval()
    assert any(isinstance(part, nn.SyncBatchNorm) for part in shared.modules())
    torch.testing.assert_close(shared(x), expected)
    assert all(a is b for a, b in zip(shared.parameters(), weights, strict=True))

    shared.double()  # makes new buffers, as a move to a GPU does
    for name, buffer in shared.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(1)
    expected = shared(x.double())
    reverted = sync.revert(shared)
    assert [type(part) for part in reverted.modules()] == kinds
    assert not any(part.training for part in reverted.modules())
    torch.testing.assert_close(reverted(x.double()), expected)
