"""Networks with folded norms compute the same without a BatchNorm."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.models import VARIANTS, MobileMamba, fuse_norms

pytestmark = pytest.mark.kernels

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


def test_folding_twice_changes_nothing(tiny: Build) -> None:
    once = fuse_norms(tiny())
    twice = fuse_norms(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_precision_is_kept(tiny: Build) -> None:
    model = tiny().double()
    fused, pictures = fuse_norms(model), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(pictures), model(pictures), rtol=1e-10, atol=1e-10)


class _Other(nn.BatchNorm1d):
    """A norm of a class that is not known, although it derives from one that is."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def _untracked(norm: nn.Module) -> nn.Module:
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    return kind(norm.num_features, track_running_stats=False)  # type: ignore[arg-type]


def _without_affine(norm: nn.Module) -> nn.Module:
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    return kind(norm.num_features, affine=False)  # type: ignore[arg-type]


def with_norms(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, make(child))
    return model


OTHER_NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "sync": nn.SyncBatchNorm.convert_sync_batchnorm,
    "without affine": lambda model: with_norms(model, _without_affine),
    "untracked": lambda model: with_norms(model, _untracked),
    "unknown": lambda model: with_norms(model, lambda norm: _Other(norm.num_features)),  # type: ignore[arg-type]
    "none": lambda model: with_norms(model, lambda _: nn.Identity()),
}


@pytest.mark.parametrize("name", OTHER_NORMS)
def test_norms_of_other_classes_are_folded_or_left_alone(tiny: Build, name: str) -> None:
    model = OTHER_NORMS[name](tiny(num_classes=5)).eval()
    fused = fuse_norms(model)
    assert_same_output(model, fused)
    kinds = {type(m) for m in fused.modules()}
    assert (nn.SyncBatchNorm in kinds, nn.BatchNorm1d in kinds, _Other in kinds) == (
        False,
        name == "untracked",
        name == "unknown",
    )
