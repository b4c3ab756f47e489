"""PSPNet computes what the authors' network computes: maps, logits, classes, loss and gradients."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.dense import Segmenter, create_segmenter
from mobilemamba.models import load_weights

close = partial(pytest.approx, rel=1e-4)


@pytest.fixture(scope="module")
def recorded(parity: Callable[[str], Any]) -> Any:
    return parity("pspnet.json")


@pytest.fixture(scope="module")
def pspnet(parity: Callable[[str], Any], stand_ins: ModuleType) -> Segmenter:
    segmenter = create_segmenter("pspnet", "mobilemamba_b4", 150, auxiliary=True)
    report = load_weights(segmenter, stand_ins.checkpoint(parity("shapes_pspnet.json")), verbose=False)
    assert report.format == "release"
    return segmenter.eval()


def check(tensor: Tensor, expected: dict[str, Any]) -> None:
    assert list(tensor.shape) == expected["shape"]
    assert tensor.norm().item() == close(expected["norm"])
    count, size = len(expected["spread"]), tensor.numel()
    spread = tensor.flatten()[[k * size // count for k in range(count)]]
    assert (spread - torch.tensor(expected["spread"])).abs().max() < 1e-4 * expected["absmax"]


def test_maps_logits_and_classes(recorded: Any, stand_ins: ModuleType, pspnet: Segmenter) -> None:
    case = recorded["cases"]["synthetic"]  # 272 x 340, whose maps have odd sides
    with torch.no_grad():
        pictures = stand_ins.image(case["input"]["shape"][2:])
        maps = pspnet.backbone(pictures)
        for found, expected in zip(maps, case["backbone"], strict=True):
            check(found, expected)
        check(pspnet.head(maps), case["logits"])
        assert pspnet.auxiliary_head is not None
        check(pspnet.auxiliary_head(maps), case["aux_logits"])
        logits = pspnet(pictures)
    check(logits, case["upsampled"])
    counts = torch.bincount(logits.argmax(1).flatten(), minlength=150)
    expected_counts = torch.zeros_like(counts)
    for label, count in case["upsampled"]["argmax"].items():
        expected_counts[int(label)] = count
    assert (counts - expected_counts).abs().sum() <= 0.0005 * counts.sum()


def test_losses_and_every_gradient(recorded: Any, stand_ins: ModuleType, pspnet: Segmenter) -> None:
    case = recorded["training"]["cases"]["batch1_eval"]
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    label = ((x // 16) * 7 + (y // 16) * 13) % 150
    label[(x // 32 + y // 32) % 5 == 0] = 255
    # The mean over all pixels, the ignored ones included.
    logits = pspnet.forward_heads(stand_ins.image(256))
    main, auxiliary = (
        F.cross_entropy(each, label[None], ignore_index=255, reduction="sum") / label.numel() for each in logits
    )
    assert main.item() == close(case["losses"]["decode.loss_ce"])
    assert 0.4 * auxiliary.item() == close(case["losses"]["aux.loss_ce"])
    (main + 0.4 * auxiliary).backward()
    gradients = {name: p.grad for name, p in pspnet.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in pspnet.to_release(gradients).items()}
    assert norms.keys() == case["grad_norms"].keys()
    wrong = {n: (norms[n], e) for n, e in case["grad_norms"].items() if norms[n] != pytest.approx(e, rel=2e-3)}
    assert not wrong
