"""Fused networks compute the same without a BatchNorm."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.models import VARIANTS, MobileMamba, fuse_norms

Build = Callable[..., MobileMamba]
FUSED_PARAMS = {
    "t2": 8_809_444,
    "t4": 14_141_092,
    "s6": 15_000_456,
    "b1": 17_079_424,
    "b2": 17_079_424,
    "b4": 17_079_424,
}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def test_s6_has_78_norms_and_then_none() -> None:
    model = timm.create_model("mobilemamba_s6")
    fused = fuse_norms(model)
    assert (norms(model), norms(fused)) == (78, 0)
    layer_norms = [sum(isinstance(m, nn.LayerNorm) for m in network.modules()) for network in (model, fused)]
    assert layer_norms == [5, 5]  # one a block: they depend on the input and stay


@pytest.mark.parametrize("name", VARIANTS)
def test_six_sizes(trained: Build, name: str) -> None:
    model = trained(name)
    fused = fuse_norms(model)
    assert norms(fused) == 0
    assert sum(p.numel() for p in fused.parameters()) == FUSED_PARAMS[name[-2:]]
    assert_same_output(model, fused)


def assert_same_output(model: nn.Module, fused: nn.Module) -> None:
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, logits = model(pictures), fused(pictures)
    assert (logits - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "choices",
    [
        {"directions": 4, "d_state": 2},
        {"directions": 1, "ssm_ratio": 1},
        {"kernel_sizes": ((3, 5, 7), (3, 5), 3)},
        {"wavelet": "none"},
        {"wavelet": "db2"},
        {"global_ratio": (0, 0, 0), "local_ratio": (1, 0.5, 0)},
        {"global_ratio": (1, 1, 1), "local_ratio": (0, 0, 0)},
        {"num_classes": 0},
        {"drop_path_rate": 0.3},
    ],
    ids=str,
)
def test_every_choice_of_architecture(tiny: Build, choices: dict[str, Any]) -> None:
    model = tiny(**choices)
    fused = fuse_norms(model)
    assert norms(fused) == 0
    assert_same_output(model, fused)


def test_the_original_is_left_as_it_was(tiny: Build) -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse_norms(model)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert model.training
    assert not fused.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fusing_twice_changes_nothing(tiny: Build) -> None:
    once = fuse_norms(tiny())
    twice = fuse_norms(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_precision_is_kept(tiny: Build) -> None:
    model = tiny().double()
    fused, pictures = fuse_norms(model), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(pictures), model(pictures), rtol=1e-10, atol=1e-10)
