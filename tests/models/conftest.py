"""Networks whose every part matters: small, and with norms and scales as after training."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mobilemamba.models import MobileMamba

TINY = {"embed_dims": (32, 48, 64), "depths": (1, 1, 1), "num_classes": 7}


@torch.no_grad()
def randomize(model: MobileMamba) -> None:
    """Moves norms and scales away from their start, where a residual branch is nothing; statistics are of noise."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.3, 0.9)
        nn.init.normal_(norm.bias, 0, 0.1)
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("scale", "A_log", "D"):
            nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    model.train()(torch.randn(4, model.patch_embed[0].conv.in_channels, 96, 96))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


@pytest.fixture(scope="session")
def trained() -> Callable[..., MobileMamba]:
    """Builds a network in evaluation mode as training might have left it."""

    def build(name: str = "mobilemamba_s6", **choices: Any) -> MobileMamba:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = timm.create_model(name, **choices)
            randomize(model)
        return model

    return build


@pytest.fixture(scope="module")
def source(tiny: Callable[..., MobileMamba]) -> MobileMamba:
    """A network whose weights are to be loaded."""
    return tiny()


@pytest.fixture
def target() -> MobileMamba:
    """A fresh network of the same architecture as ``source``."""
    return timm.create_model("mobilemamba_s6", **TINY).eval()


@pytest.fixture(scope="session")
def equal() -> Callable[[nn.Module, Mapping[str, Tensor]], bool]:
    """Whether a network holds exactly these tensors."""

    def compare(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
        own = model.state_dict()
        return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)

    return compare


@pytest.fixture(scope="session")
def near() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether two networks answer alike."""

    def compare(one: nn.Module, other: nn.Module) -> bool:
        pictures = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            expected = one(pictures)
            return bool((other(pictures) - expected).norm() < 1e-5 * expected.norm())

    return compare


@pytest.fixture(scope="session")
def tiny(trained: Callable[..., MobileMamba]) -> Callable[..., MobileMamba]:
    """As ``trained``, of 32 to 64 channels and 7 classes."""
    return lambda **choices: trained("mobilemamba_s6", **{**TINY, **choices})
