"""The network computes what the authors' release computes: same tensors, outputs, loss and gradients for T2."""

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mobilemamba.models import load_weights
from mobilemamba.models.release_names import ours_to_release

pytestmark = pytest.mark.kernels

CASES = ("t2", "t2_odd")
close = partial(pytest.approx, rel=1e-4)


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Any]:
    path = shared / "parity" / "release_t2.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the optional test data")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def stand_ins(shared: Path) -> ModuleType:
    """The functions that rebuild the stand-in weights and the inputs."""
    path = shared / "parity" / "weights.py"
    if not path.is_file():
        pytest.skip(f"no parity/{path.name} in the optional test data")
    spec = importlib.util.spec_from_file_location("parity_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(recorded: dict[str, Any], stand_ins: ModuleType) -> nn.Module:
    model = timm.create_model("mobilemamba_t2").eval()
    filters = {n: t for n, t in ours_to_release(model.state_dict()).items() if n.endswith("wt_filter")}
    report = load_weights(model, stand_ins.checkpoint(recorded["names_and_shapes"], filters), verbose=False)
    assert report.format == "release"
    return model


def test_tensors_have_the_release_names_and_shapes(recorded: dict[str, Any], model: nn.Module) -> None:
    ours = {name: list(tensor.shape) for name, tensor in ours_to_release(model.state_dict()).items()}
    assert ours == recorded["names_and_shapes"]


def test_parameter_counts(recorded: dict[str, Any], model: nn.Module) -> None:
    case = recorded["cases"]["t2"]
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case["trainable"]


@pytest.mark.parametrize("name", CASES)
def test_logits(recorded: dict[str, Any], stand_ins: ModuleType, model: nn.Module, name: str) -> None:
    case = recorded["cases"][name]
    with torch.no_grad():
        logits = model(stand_ins.image(case["size"], case["batch"]))
    norm = case["logits_norm"][0]
    expected = torch.tensor(case["logits"])
    # The recorded head of the vector, measured against the norm of its share.
    share = norm * (expected.shape[1] / logits.shape[1]) ** 0.5
    assert (logits[:, : expected.shape[1]] - expected).norm() < 1e-4 * share
    assert logits.norm().item() == close(norm)
    assert logits.argmax(1).tolist() == case["argmax"]


@pytest.mark.parametrize("name", CASES)
def test_features(recorded: dict[str, Any], stand_ins: ModuleType, model: nn.Module, name: str) -> None:
    case = recorded["cases"][name]
    with torch.no_grad():
        features = model.forward_intermediates(stand_ins.image(case["size"], case["batch"]), intermediates_only=True)
    assert len(features) == len(case["features"])
    for feature, expected in zip(features, case["features"], strict=True):
        assert list(feature.shape) == expected["shape"]
        assert feature.norm().item() == close(expected["norm"])
        assert feature.std().item() == close(expected["std"])
        assert feature.mean().item() == pytest.approx(expected["mean"], abs=1e-4 * expected["std"])


def test_loss_and_every_gradient(recorded: dict[str, Any], stand_ins: ModuleType, model: nn.Module) -> None:
    case = recorded["cases"]["t2"]
    model.zero_grad()
    loss = F.cross_entropy(model(stand_ins.image(case["size"], case["batch"])), torch.zeros(1, dtype=torch.long))
    loss.backward()
    assert loss.item() == close(case["loss"])
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in ours_to_release(gradients).items()}
    assert norms.keys() == case["grad_norms"].keys()
    wrong = {n: (norms[n], expected) for n, expected in case["grad_norms"].items() if norms[n] != close(expected)}
    assert not wrong
