"""Scores of pixels: by the definition, over a whole set, at the targets' size, and a few rows at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from mobilemamba.data import IGNORED_PIXEL
from mobilemamba.dense import pixels
from mobilemamba.dense.pixels import cross_entropies, likeliest
from mobilemamba.training.confusion import class_scores
from mobilemamba.training.segmentation_metrics import SegmentationMetrics

CLASSES = 6


def batches():
    """Logits and targets of several sizes; class 3 occurs nowhere, class 4 only as an answer, class 5 only as a target.

    Some pixels do not count.
    """
    generator = torch.Generator().manual_seed(0)
    for size, target_size in (((9, 7), (9, 7)), ((8, 8), (13, 10)), ((6, 12), (5, 9))):
        logits = 3 * torch.randn(2, CLASSES, *size, generator=generator)
        logits[:, [3, 5]] -= 100
        targets = torch.tensor([0, 1, 2, 5])[torch.randint(4, (2, *target_size), generator=generator)]
        targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORED_PIXEL
        yield logits, targets


def by_definition():
    """As the field's usual tool has them, in NumPy: sums of intersections and areas over the set, then means."""
    inside, answered, of = (np.zeros(CLASSES) for _ in range(3))
    losses = []
    for logits, targets in batches():
        scaled = F.interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)
        kept = (targets != IGNORED_PIXEL).numpy()
        truth, answer = targets.numpy()[kept], scaled.argmax(1).numpy()[kept]
        losses += F.cross_entropy(scaled, targets, ignore_index=IGNORED_PIXEL, reduction="none")[kept].tolist()
        for index in range(CLASSES):
            inside[index] += ((truth == index) & (answer == index)).sum()
            answered[index] += (answer == index).sum()
            of[index] += (truth == index).sum()
    with np.errstate(invalid="ignore"):
        iou, accuracy = inside / (answered + of - inside), inside / of
    assert np.isnan(iou).tolist() == [False, False, False, True, False, False]
    assert np.isnan(accuracy).tolist() == [False, False, False, True, True, False]
    scores = {"miou": np.nanmean(iou), "aacc": inside.sum() / of.sum(), "macc": np.nanmean(accuracy)}
    return {key: 100 * value for key, value in scores.items()} | {"loss": np.mean(losses)}, iou


@pytest.mark.parametrize("most", [1 << 24, 150])  # numbers at a time: all of them, a row or two
def test_scores_are_the_definition_s(monkeypatch, most):
    monkeypatch.setattr(pixels, "_BAND", most)
    expected, iou = by_definition()
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(*next(batches()))
    metrics.compute()  # the next result starts anew
    for logits, targets in batches():
        metrics.update(logits, targets)
    metrics.update(torch.randn(1, CLASSES, 4, 4), torch.full((1, 4, 4), IGNORED_PIXEL))  # a repeat
    found = metrics.compute()
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, rel=1e-5)
    known = {score.label: score.iou for score in class_scores(metrics.counts)}
    assert known == pytest.approx({index: value for index, value in enumerate(iou) if not np.isnan(value)})


def test_no_device_is_waited_for():
    """The meta device has no numbers to wait for."""
    metrics = SegmentationMetrics(CLASSES).to("meta")
    logits, targets = (x.to("meta") for x in next(batches()))
    for _ in range(2):
        metrics.update(logits, targets)
        assert metrics.changed(logits, logits, targets).device.type == "meta"


def test_miou_is_torchmetrics():
    metrics = SegmentationMetrics(CLASSES)
    other = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=IGNORED_PIXEL)
    for logits, targets in batches():
        metrics.update(logits, targets)
        other.update(likeliest(logits, tuple(targets.shape[-2:])), targets)
    assert metrics.compute()["miou"] == pytest.approx(100 * float(other.compute()), rel=1e-5)


def test_which_pixels_folded_norms_change():
    logits = torch.randn(2, CLASSES, 8, 8)
    targets = torch.zeros(2, 8, 8, dtype=torch.int64)
    targets[0, 0] = IGNORED_PIXEL
    others = logits.clone()
    others[0, :, :2] = others[0, :, :2].flip(0)  # 16 pixels get another class, 8 of which do not count
    assert SegmentationMetrics(CLASSES).changed(logits, others, targets) == 8


SIZES = [[(5, 6)], [(9, 13)], [(3, 4)], [(9, 6), (31, 20)], [(64, 64), (17, 50)], [(9, 13), (9, 40)]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("band", [1, 1000])
def test_a_few_rows_at_a_time_are_all_of_them(monkeypatch, layout, sizes, band):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, 5, 6, generator=generator).contiguous(memory_format=layout)
    logits[:, 7] = logits[:, 2]  # of equal ones the first
    whole = logits
    for size in sizes:
        whole = F.interpolate(whole, size, mode="bilinear", align_corners=False)
    monkeypatch.setattr(pixels, "_BAND", band)
    assert torch.equal(likeliest(logits, *sizes), whole.argmax(1))
    targets = torch.randint(11, (2, *sizes[0]), generator=generator)
    whole = F.interpolate(logits, sizes[0], mode="bilinear", align_corners=False)
    torch.testing.assert_close(cross_entropies(logits, targets), F.cross_entropy(whole, targets, reduction="none"))
    assert cross_entropies(logits.bfloat16(), targets).dtype == torch.float32
