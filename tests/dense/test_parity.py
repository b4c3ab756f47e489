"""PSPNet, RetinaNet and SSDLite compute what the authors' do: maps, what is predicted, losses and gradients."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.dense import Detector, Segmenter, create_detector, create_segmenter
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
    check_gradients(pspnet, case)


def check_gradients(network: Segmenter | Detector, case: dict[str, Any]) -> None:
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in network.to_release(gradients).items()}
    assert case["grad_norms"].keys() <= norms.keys()
    assert len(norms) == sum(p.requires_grad for p in network.parameters())
    expected = case["grad_norms"].items()
    wrong = {n: (norms[n], e) for n, e in expected if norms[n] != pytest.approx(e, rel=2e-3, abs=1e-9)}
    assert not wrong


@pytest.fixture(scope="module", params=["retinanet", "ssdlite_320"])
def detection(request: Any, parity: Callable[[str], Any], stand_ins: ModuleType) -> tuple[Any, Detector]:
    """What the authors' detector computes, and ours with the same weights."""
    setup = request.param
    detector = create_detector(setup.removesuffix("_320"), "mobilemamba_b1")
    report = load_weights(detector, stand_ins.checkpoint(parity(f"shapes_{setup}.json")), verbose=False)
    assert report.format == "release"
    return parity(f"{setup}.json"), detector.eval()


def test_levels_and_detections(detection: tuple[Any, Detector], stand_ins: ModuleType) -> None:
    recorded, detector = detection
    case = recorded["cases"]["synthetic"]
    meta, expected = case["input"]["meta"], case["detections"]
    pictures = stand_ins.image(case["input"]["shape"][2:])
    with torch.no_grad():
        for found, level in zip(detector.levels(pictures), case["neck"], strict=True):
            check(found, level)
        outputs = detector(pictures)
        grids = recorded["anchors"]["sizes"]
        for output, maps in zip(outputs, (case["cls"], case["reg"]), strict=True):
            levels = output.split(recorded["anchors"]["count"], 1)
            for level, (height, width), of_map in zip(levels, grids, maps, strict=True):
                check(level.reshape(1, height, width, -1).permute(0, 3, 1, 2), of_map)
        (found,) = detector.detect(pictures, torch.tensor([meta["img_shape"]]))
    assert len(found["boxes"]) == expected["count"]
    assert found["scores"].sum().item() == close(expected["score_sum"])
    assert found["labels"][:20].tolist() == expected["labels"]
    assert found["labels"].bincount().nonzero().flatten().tolist() == [int(n) for n in expected["label_histogram"]]
    assert found["scores"][:20].tolist() == pytest.approx(expected["scores"], abs=1e-4)
    boxes = found["boxes"][:20] / torch.tensor(meta["scale_factor"]).repeat(2)
    assert torch.allclose(boxes, torch.tensor(expected["boxes"]), rtol=0, atol=0.02)


def test_losses_of_boxes_and_gradients(detection: tuple[Any, Detector], stand_ins: ModuleType) -> None:
    recorded, detector = detection
    training = recorded["training"]
    targets = [
        {"boxes": torch.tensor(g["boxes"]), "labels": torch.tensor(g["labels"]), "size": torch.tensor(i["img_shape"])}
        for g, i in zip(training["gt"], training["images"], strict=True)
    ]
    cases = training["cases"]
    losses = detector.losses(stand_ins.image(training["canvas"]), targets[:1])
    assert [loss.item() for loss in losses.values()] == close(first_two(cases["batch1_eval"]["losses"]))
    torch.stack(list(losses.values())).sum().backward()
    check_gradients(detector, cases["batch1_eval"])
    # The second picture is smaller than the batch: anchors beyond it find nothing, not even the background.
    pictures = stand_ins.image(training["canvas"], 2)
    height, width = training["images"][1]["img_shape"]
    pictures[1, :, height:] = 0
    pictures[1, :, :, width:] = 0
    with torch.no_grad():
        losses = detector.train().losses(pictures, targets)
    detector.eval()
    assert [loss.item() for loss in losses.values()] == close(first_two(cases["batch2_train"]["losses"]))


def first_two(losses: dict[str, Any]) -> list[float]:
    return [losses["loss_cls"], losses["loss_bbox"]]


def test_anchors_are_the_authors(detection: tuple[Any, Detector]) -> None:
    recorded, detector = detection
    expected = recorded["anchors"]
    levels = detector.anchors([tuple(size) for size in expected["sizes"]], torch.device("cpu"))
    assert [len(level) for level in levels] == expected["count"]
    for level, first, last, total in zip(levels, expected["base"], expected["last"], expected["sum"], strict=True):
        assert torch.allclose(level[: len(first)], torch.tensor(first), atol=1e-3)
        assert torch.allclose(level[-1], torch.tensor(last), atol=1e-3)
        assert level.double().sum().item() == pytest.approx(total, rel=1e-5)
