"""Time spent in the parts of a detector: backbone, neck, heads, and post-processing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mobilemamba.analysis.timing import synchronize
from mobilemamba.dense import Detector

#: The last part is anchors and boxes, regions, and non-maximum suppression.
PARTS = ("backbone", "neck", "head", "rest")
#: Number of candidates that an untrained network should find in a picture, about as many as in a real one.
_CANDIDATES = 1000


@torch.inference_mode()
def lower_threshold(detector: Detector, pictures: Tensor) -> None:
    """Lowers the score threshold so that a detector with random weights has boxes to post-process."""
    limits = {"score_threshold": 0.0, "max_boxes": _CANDIDATES + 1, "overlap": 1.0}
    own = {name: getattr(detector, name) for name in limits}
    for name, value in limits.items():
        setattr(detector, name, value)
    (found,) = detector.detect(pictures[:1])
    for name, value in own.items():
        setattr(detector, name, value)
    if len(found["scores"]):
        detector.score_threshold = found["scores"][-1].item()


@torch.inference_mode()
def seconds_of_parts(detector: Detector, pictures: Tensor, rounds: int) -> dict[str, float]:
    """Returns the median seconds of each of ``PARTS`` in a detection."""
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(rounds):
        for part, seconds in _once(detector, pictures).items():
            found[part].append(seconds)
    return {part: statistics.median(seconds) for part, seconds in found.items()}


def _once(detector: Detector, pictures: Tensor) -> dict[str, float]:
    spent, started = dict.fromkeys(PARTS, 0.0), [0.0]

    def now() -> float:
        synchronize(pictures.device)
        return time.perf_counter()

    def watched(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = now()
            result = call(*args)
            spent[part] += now() - start
            return result

        return run

    def begin(*_: Any) -> None:
        started[0] = now()

    def end(part: str) -> Callable[..., None]:
        def stop(*_: Any) -> None:
            spent[part] += now() - started[0]

        return stop

    with ExitStack() as stack:
        for name, child in detector.named_children():
            if name != "backbone":  # timed by ``maps``, as SSDLite does not call the backbone as a whole
                stack.enter_context(child.register_forward_pre_hook(begin))
                stack.enter_context(child.register_forward_hook(end("neck" if name == "neck" else "head")))
        detector.__dict__["maps"] = watched("backbone", detector.maps)
        stack.callback(detector.__dict__.pop, "maps")
        start = now()
        detector.detect(pictures)
        whole = now() - start
    return {**spent, "rest": whole - sum(spent.values())}
