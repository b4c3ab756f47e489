"""Small segmenters, and what the authors' networks compute."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.dense import Segmenter, create_segmenter
from mobilemamba.models import ArchOverrides

TINY = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Segmenter]:
    """Builds a segmenter of 7 classes in evaluation mode; norms and scales are as after training."""

    def build(head: str, backbone: str = "mobilemamba_s6", **choices: Any) -> Segmenter:
        arch = TINY if backbone.startswith("mobilemamba") else None
        with torch.random.fork_rng():
            torch.manual_seed(1)
            segmenter = create_segmenter(head, backbone, 7, arch=arch, head_dim=16, **choices)
            for module in segmenter.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
                    nn.init.uniform_(module.weight, 0.3, 0.9)
                    nn.init.normal_(module.bias, 0, 0.1)
            segmenter.train()
            with torch.no_grad():
                segmenter.forward_heads(torch.randn(2, 3, 64, 96))
        return segmenter.eval()

    return build


@pytest.fixture(scope="session")
def parity(shared: Path) -> Callable[[str], Any]:
    """Reads one of the files of what the authors' networks compute."""

    def read(name: str) -> Any:
        path = shared / "parity" / "dense" / name
        if not path.is_file():
            pytest.skip(f"no parity/dense/{name} in the optional test data")
        return json.loads(path.read_text())

    return read


@pytest.fixture(scope="session")
def stand_ins(shared: Path) -> ModuleType:
    """The functions that rebuild the stand-in weights and the inputs."""
    path = shared / "parity" / "dense" / "dense_weights.py"
    if not path.is_file():
        pytest.skip(f"no parity/dense/{path.name} in the optional test data")
    spec = importlib.util.spec_from_file_location("dense_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
