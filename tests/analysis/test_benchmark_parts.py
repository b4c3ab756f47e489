"""The parts of a detector's time, and what it is given to do."""

import time
from collections.abc import Callable

import pytest
import torch

from mobilemamba.analysis.benchmark.parts import PARTS, lower_threshold, seconds_of_parts
from mobilemamba.dense import DETECTION_HEADS, create_detector
from mobilemamba.dense.detector import Detector
from mobilemamba.models import ArchOverrides

ARCH = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))


@pytest.mark.parametrize("head", DETECTION_HEADS)
def test_parts_are_told_apart(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = create_detector(head, "mobilemamba_s6", 3, arch=ARCH, head_dim=16).eval()
    pictures, slowed = torch.randn(1, 3, 64, 96), dict.fromkeys(PARTS, 0.0)

    def slow(call: Callable[..., object], seconds: float) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            time.sleep(seconds)
            return call(*args, **options)

        return run

    head_module = detector.get_submodule("rpn" if head == "mask_rcnn" else "head")
    for part, module, name, seconds in (
        ("backbone", detector.backbone.model, "forward_intermediates", 0.2),
        ("neck", detector.neck, "forward", 0.3),
        ("head", head_module, "forward", 0.4),
        ("rest", detector.anchors, "within", 0.5),
    ):
        monkeypatch.setattr(module, name, slow(getattr(module, name), seconds))
        slowed[part] = seconds
    began = time.perf_counter()
    found = seconds_of_parts(detector, pictures, 1)
    assert sum(found.values()) <= time.perf_counter() - began
    assert all(found[part] >= seconds for part, seconds in slowed.items())
    assert "maps" not in vars(detector)


@pytest.mark.parametrize("head", DETECTION_HEADS)
def test_random_weights_find_something(head: str) -> None:
    detector: Detector = create_detector(head, "mobilemamba_s6", 80, arch=ARCH, head_dim=16).eval()
    pictures = torch.randn(1, 3, 128, 128)
    assert not len(detector.detect(pictures)[0]["scores"])
    lower_threshold(detector, pictures)
    assert len(detector.detect(pictures)[0]["scores"]) > 20
    assert (detector.max_boxes, detector.overlap) == (type(detector).max_boxes, type(detector).overlap)
