"""Small segmenters, and what the authors' networks compute."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.dense import Detector, Segmenter, create_detector, create_segmenter
from mobilemamba.dense.mask_rcnn import MaskRCNN
from mobilemamba.models import ArchOverrides

#: The layers that give logits and boxes, and the deviation that these are to have.
PREDICTORS = {
    "mask_rcnn": [
        (r"rpn\.cls_logits", 1.0),
        (r"rpn\.bbox_pred", 0.2),
        (r"box_head\.classes", 1.0),
        (r"box_head\.codes", 1.0),
        (r"mask_predictor\.mask_fcn_logits", 1.0),
    ],
    "retinanet": [(r"head.*\.cls_logits", 1.0), (r"head.*\.bbox_reg", 0.2)],
    "ssdlite": [(r"head\.classes\.\d\.2", 1.0), (r"head\.codes\.\d\.2", 1.0)],
}
TINY = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Segmenter]:
    """Builds a segmenter of 7 classes in evaluation mode; norms and scales are as after training."""

    def build(head: str, backbone: str = "mobilemamba_s6", **choices: Any) -> Segmenter:
        arch = TINY if backbone.startswith("mobilemamba") else None
        with torch.random.fork_rng():
            torch.manual_seed(1)
            segmenter = create_segmenter(head, backbone, 7, arch=arch, head_dim=16, **choices)
            settle(segmenter, lambda: segmenter.forward_heads(torch.randn(2, 3, 64, 96)))
        return segmenter.eval()

    return build


@pytest.fixture(scope="session")
def tiny_detector() -> Callable[..., Detector]:
    """Builds a detector of 7 classes in evaluation mode, as after training, whose scores are above the thresholds."""

    def build(head: str, backbone: str = "mobilemamba_s6", **choices: Any) -> Detector:
        arch = TINY if backbone.startswith("mobilemamba") else None
        frozen = choices.pop("frozen_norms", True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            detector = create_detector(head, backbone, 7, arch=arch, head_dim=16, frozen_norms=False, **choices)
            if isinstance(detector, MaskRCNN):
                detector.proposals, detector.region_samples = 60, 40
            pictures = torch.randn(2, 3, 128, 192)
            settle(detector, lambda: detector(pictures))
            detector.eval()
            # Logits of about -3 to 3 and boxes of about their anchors' size, so that some pass the thresholds.
            for predictor, spread in PREDICTORS[head]:
                layers = [module for name, module in detector.named_modules() if re.fullmatch(predictor, name)]
                scale_outputs(layers, spread, lambda: detector.detect(pictures))
            detector.frozen_norms = frozen
        return detector.eval()

    return build


def settle(network: nn.Module, run: Callable[[], Any]) -> None:
    """Gives norms weights and statistics as they are after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, 0, 0.1)
    network.train()
    with torch.no_grad():
        run()


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


def scale_outputs(layers: list[Any], spread: float, run: Callable[[], Any]) -> None:
    """Scales weights so that all that the layers give has a deviation, and sets their biases to zero."""
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, x, y: outputs.append(y.flatten())) for layer in layers]
    with torch.no_grad():
        run()
        for layer in layers:
            layer.weight *= spread / torch.cat(outputs).std()
            layer.bias.zero_()
    for hook in hooks:
        hook.remove()
