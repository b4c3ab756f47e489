"""Mask R-CNN by its definition, written out a box at a time; the authors' numbers of it are not recorded."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, nms, roi_align

from mobilemamba.dense import Detector
from mobilemamba.dense.mask_rcnn import MaskRCNN

CLASSES, STRIDES = 7, (4, 8, 16, 32, 64)
CLIP = math.log(1000 / 16)


@pytest.fixture(scope="module")
def detector(tiny_detector: Callable[..., Detector]) -> MaskRCNN:
    """One that leaves nothing to chance: all anchors and all proposals count."""
    built = cast(MaskRCNN, tiny_detector("mask_rcnn"))
    built.anchor_samples, built.region_samples, built.proposals = 10**6, 10**5, 25
    return built


def anchors_by_hand(levels: list[Tensor]) -> list[Tensor]:
    """Squares of eight cells' side and their two oblong forms about the left upper corner of every cell."""
    found = []
    for stride, level in zip(STRIDES, levels, strict=True):
        boxes = []
        for y in range(level.shape[-2]):
            for x in range(level.shape[-1]):
                for ratio in (0.5, 1, 2):
                    w, h = 8 * stride / ratio**0.5, 8 * stride * ratio**0.5
                    boxes.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
        found.append(torch.tensor(boxes))
    return found


def decode(codes: Tensor, boxes: Tensor, deviations: tuple[float, float]) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 + codes[:, :2] * deviations[0] * sides
    sides = sides * (codes[:, 2:] * deviations[1]).clamp(-CLIP, CLIP).exp()
    return torch.cat((centres - sides / 2, centres + sides / 2), 1)


def encode(wanted: Tensor, boxes: Tensor, deviations: tuple[float, float]) -> Tensor:
    sides, theirs = boxes[:, 2:] - boxes[:, :2], wanted[:, 2:] - wanted[:, :2]
    shift = (wanted[:, :2] + wanted[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / sides
    return torch.cat((shift / deviations[0], (theirs / sides).log() / deviations[1]), 1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return boxes.clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2))


def heads_by_hand(detector: MaskRCNN, levels: list[Tensor], picture: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and codes of each level's anchors: by row, column, form."""
    for level in levels:
        hidden = F.relu(F.conv2d(level[picture : picture + 1], *detector.rpn.conv[0][0].parameters(), padding=1))
        logits, codes = detector.rpn.cls_logits(hidden)[0], detector.rpn.bbox_pred(hidden)[0]
        yield logits.permute(1, 2, 0).flatten(), codes.unflatten(0, (3, 4)).permute(2, 3, 0, 1).flatten(0, 2)


def proposals_by_hand(
    detector: MaskRCNN, levels: list[Tensor], picture: int, size: tuple[int, int], candidates: int
) -> Tensor:
    """Of anchors whose cells begin within the picture, padded to multiples of 32: no others are trained."""
    boxes, scores = [], []
    heads = heads_by_hand(detector, levels, picture)
    height, width = (math.ceil(side / 32) * 32 for side in size)
    for anchors, (logits, codes), stride, level in zip(anchors_by_hand(levels), heads, STRIDES, levels, strict=True):
        cells = [
            y * stride < height and x * stride < width for y in range(level.shape[-2]) for x in range(level.shape[-1])
        ]
        inside = torch.tensor(cells).repeat_interleave(3)
        anchors, logits, codes = anchors[inside], logits[inside], codes[inside]
        best = logits.sigmoid().argsort(descending=True)[:candidates]
        found = clip(decode(codes[best], anchors[best], (1, 1)), size)
        alive = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        found, score = found[alive], logits[best][alive].sigmoid()
        kept = nms(found, score, 0.7)
        boxes.append(found[kept])
        scores.append(score[kept])
    return torch.cat(boxes)[torch.cat(scores).argsort(descending=True)[: detector.proposals]]


def pooled_by_hand(levels: list[Tensor], picture: int, box: Tensor, side: int) -> Tensor:
    scale = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    level = min(3, max(0, math.floor(math.log2(scale / 56 + 1e-6))))
    map_, at = levels[level][picture : picture + 1], [box[None]]
    return roi_align(map_, at, side, 1 / STRIDES[level], sampling_ratio=0, aligned=True)[0]


def assign_by_hand(boxes: Tensor, wanted: Tensor, positive: float, negative: float, lowest: float) -> list[int | None]:
    """The wanted box of each; -1 for the background, None for what is left out."""
    iou = box_iou(boxes, wanted)
    found: list[int | None] = []
    for row in iou:
        best = float(row.max())
        found.append(int(row.argmax()) if best >= positive else -1 if best < negative else None)
    for column in range(len(wanted)):
        best = float(iou[:, column].max())
        for place in range(len(boxes)):
            if best >= lowest and iou[place, column] == best:
                found[place] = column
    return found


def targets() -> list[dict[str, Any]]:
    y, x = torch.meshgrid(torch.arange(70) + 0.5, torch.arange(93) + 0.5, indexing="ij")
    given = []
    for boxes, labels, size in (
        ([[4.0, 6, 50, 60], [10, 0, 90, 40], [30, 30, 40, 38]], [0, 6, 2], (70, 93)),  # no anchor is as small
        ([[20.5, 20, 61, 44]], [3], (60, 64)),
    ):
        ellipses = [
            ((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2 <= 0.25 for a, b, c, d in boxes
        ]
        masks = torch.stack(ellipses)[:, : size[0], : size[1]]
        given.append(
            {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "size": torch.tensor(size), "masks": masks}
        )
    return given


def test_losses_are_normalised_as_defined(detector: MaskRCNN) -> None:
    pictures, given = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(3)), targets()
    with torch.no_grad():
        losses = detector.losses(pictures, given)
        levels = detector.levels(pictures)
        objectness, proposal, drawn = [], [], 0
        class_, box, mask, regions = [], [], [], 0
        for picture, target in enumerate(given):
            height, width = target["size"].tolist()
            inside = [  # of cells that its own padding to multiples of 32 reaches into
                y * stride < math.ceil(height / 32) * 32 and x * stride < math.ceil(width / 32) * 32
                for stride, level in zip(STRIDES, levels, strict=True)
                for y in range(level.shape[-2])
                for x in range(level.shape[-1])
                for _ in range(3)
            ]
            anchors = torch.cat(anchors_by_hand(levels))
            logits, codes = (torch.cat(x) for x in zip(*heads_by_hand(detector, levels, picture), strict=True))
            found = assign_by_hand(anchors, target["boxes"], 0.7, 0.3, 0.3)
            for i, match in enumerate(found):
                if match is None or not inside[i]:
                    continue
                drawn += 1
                objectness.append(F.binary_cross_entropy_with_logits(logits[i], torch.tensor(float(match >= 0))))
                if match >= 0:
                    expected = encode(target["boxes"][match][None], anchors[i][None], (1, 1))[0]
                    proposal.append((codes[i] - expected).abs().sum())
            proposed = proposals_by_hand(detector, levels, picture, (height, width), 2000)
            # The boxes that are to be found are proposals of their own.
            matches = [*range(len(target["boxes"])), *assign_by_hand(proposed, target["boxes"], 0.5, 0.5, 0.5)]
            for region, match in zip(torch.cat((target["boxes"], proposed)), matches, strict=True):
                assert match is not None
                regions += 1
                scores, offsets = detector.box_head(pooled_by_hand(levels, picture, region, 7)[None])
                label = CLASSES if match < 0 else int(target["labels"][match])  # the background is the last
                class_.append(F.cross_entropy(scores, torch.tensor([label])))
                if match < 0:
                    continue
                expected = encode(target["boxes"][match][None], region[None], (0.1, 0.2))[0]
                box.append((offsets[0, label] - expected).abs().sum())
                inner = pooled_by_hand(levels, picture, region, 14)[None]
                said = detector.mask_predictor(detector.mask_head(inner))[0, label]
                bitmap = F.pad(target["masks"][match].float(), (0, 128 - width, 0, 96 - height))
                cut = roi_align(bitmap[None, None], [clip(region[None], (96, 128))], 28, aligned=True)[0, 0]
                mask.append(F.binary_cross_entropy_with_logits(said, (cut >= 0.5).float()))
    expected = {
        "objectness": sum(objectness) / drawn,
        "proposal": sum(proposal) / drawn,  # not by those that have a box to find
        "class": sum(class_) / regions,
        "box": sum(box) / regions,  # nor here
        "mask": sum(mask) / len(mask),
    }
    assert losses.keys() == expected.keys()
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: float(loss) for name, loss in expected.items()}, rel=1e-4
    )
    assert 2 < len(box) < regions


def test_a_picture_without_objects_counts_as_if_it_had_one(detector: MaskRCNN) -> None:
    picture, none = torch.randn(1, 3, 64, 64), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with torch.no_grad():
        losses = detector.losses(picture, [{**none, "masks": torch.zeros(0, 64, 64, dtype=torch.bool)}])
        logits = torch.cat([logits for logits, _ in heads_by_hand(detector, detector.levels(picture), 0)])
    assert losses["objectness"].item() == pytest.approx(F.softplus(logits).sum().item() / (len(logits) + 1), rel=1e-4)
    assert losses["proposal"] == losses["box"] == losses["mask"] == 0


def test_nothing_is_proposed_by_what_lies_beyond_a_picture(detector: MaskRCNN) -> None:
    generous = copy.copy(detector)
    generous.proposals, size = 10**4, (32, 40)
    with torch.no_grad():
        levels = detector.levels(torch.randn(1, 3, 96, 128))
        grids = [(level.shape[-2], level.shape[-1]) for level in levels]
        (found,) = generous._propose(*generous._rpn(levels), anchors_by_hand(levels), grids, [size], 10**4)
        assert torch.allclose(found, proposals_by_hand(generous, levels, 0, size, 10**4), atol=1e-3)


def test_detections_are_as_defined(detector: MaskRCNN) -> None:
    pictures = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    sizes = [(96, 128), (70, 93)]
    found = detector.detect(pictures, sizes)
    with torch.no_grad():
        levels = detector.levels(pictures)
        for picture, (size, one) in enumerate(zip(sizes, found, strict=True)):
            proposed = proposals_by_hand(detector, levels, picture, size, 1000)
            outputs = [detector.box_head(pooled_by_hand(levels, picture, box, 7)[None]) for box in proposed]
            scores = torch.cat([logits for logits, _ in outputs]).softmax(1)
            codes = torch.cat([codes for _, codes in outputs])
            kept = []
            for label in range(CLASSES):  # not the background, which is the last
                sure = scores[:, label] > 0.05
                boxes = clip(decode(codes[sure, label], proposed[sure], (0.1, 0.2)), size)
                places = nms(boxes, scores[sure, label], 0.5).tolist()
                kept += [(scores[sure, label][place].item(), label, boxes[place]) for place in places]
            kept.sort(key=lambda entry: -entry[0])
            kept = kept[:100]
            assert len(kept) > 10
            assert one["scores"].tolist() == pytest.approx([score for score, _, _ in kept], rel=1e-4)
            assert one["labels"].tolist() == [label for _, label, _ in kept]
            assert torch.allclose(one["boxes"], torch.stack([box for _, _, box in kept]), atol=1e-3)
            for mask, label, box in zip(one["masks"], one["labels"], one["boxes"], strict=True):
                inner = pooled_by_hand(levels, picture, box, 14)[None]
                expected = detector.mask_predictor(detector.mask_head(inner))[0, label].sigmoid()
                assert torch.allclose(mask, expected, atol=1e-5)


def test_the_background_is_last_and_has_neither_box_nor_mask(detector: MaskRCNN) -> None:
    widths = [layer.weight.shape[side] for layer, side in zip(detector.get_classifier(), (0, 0, 0), strict=True)]
    assert widths == [CLASSES + 1, 4 * CLASSES, CLASSES]
    pictures = torch.randn(1, 3, 64, 64)
    for sure in range(CLASSES + 1):
        other = copy.deepcopy(detector)
        other.box_head.classes.bias.data[sure] = 50
        (found,) = other.detect(pictures)
        assert set(found["labels"].tolist()) == ({sure} if sure < CLASSES else set())
