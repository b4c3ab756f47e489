"""Boxes (x1, y1, x2, y2): which anchor is to find which, how a head writes them, and which of those found are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from mobilemamba.errors import ConfigError

#: What an anchor is to find instead of a box.
BACKGROUND, IGNORED = -1, -2


class BoxCoder(_utils.BoxCoder):
    """torchvision's, which bounds how much larger a box is than its anchor; here, also how much smaller."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (n, 4) of codes (n, 4) and as many anchors; in pairs of columns, as exported graphs have them best."""
        start, end = boxes.chunk(2, 1)
        sides = end - start
        shift, growth = (rel_codes / rel_codes.new_tensor(self.weights)).chunk(2, 1)
        centre = shift * sides + (start + 0.5 * sides)
        half = 0.5 * (growth.clamp(-self.bbox_xform_clip, self.bbox_xform_clip).exp() * sides)
        return torch.cat((centre - half, centre + half), 1)


def wanted(target: Mapping[str, Any], num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """What of a picture's boxes is to be found in training: no crowd, and nothing without an area.

    Args:
        target: ``boxes`` (N, 4), ``labels`` (N,) from 0, and ``iscrowd`` (N,) if there are crowds.
        num_classes: Classes.

    Returns:
        Boxes (n, 4), labels (n,), and their places (n,) among the N.

    Raises:
        ConfigError: If a label is none of the classes.
    """
    boxes, labels = target["boxes"].float().view(-1, 4), target["labels"]
    # False for NaN, and for what begins or ends nowhere
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    if "iscrowd" in target:
        kept &= ~target["iscrowd"].bool()
    places = kept.nonzero().squeeze(1)
    labels = labels[places]
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ConfigError(f"label {wrong.item()} of a box: expected 0 to {num_classes - 1}; count classes from 0")
    return boxes[places], labels, places


def assign(
    anchors: Tensor, boxes: Tensor, positive: float, negative: float, *, lowest: float = 0.0, ties: bool = True
) -> Tensor:
    """Which box each anchor is to find: (A,) indices into the boxes, ``BACKGROUND``, or ``IGNORED``.

    An anchor is for the box that it covers best, by intersection over union, if that is ``positive`` or above, and for
    none below ``negative``. Then each box takes the anchors that cover it best, however little; of several boxes the
    last one. torchvision's matcher gives such an anchor to the box that it covers best instead, and takes no empty set.

    Args:
        anchors: (A, 4).
        boxes: (N, 4), each with an area.
        positive: See above.
        negative: See above; what is between is ignored.
        lowest: A box takes no anchors that cover it less than this, nor any that do not touch it.
        ties: A box takes all anchors that cover it best, not the first of them only.
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    iou = box_iou(boxes, anchors)
    best, found = iou.max(0)
    found = found.where(best >= positive, IGNORED).where(best >= negative, BACKGROUND)
    highest, first = iou.max(1, keepdim=True)
    taken = iou == highest if ties else torch.zeros_like(iou, dtype=torch.bool).scatter_(1, first, value=True)
    taken &= (highest >= lowest) & (highest > 0)
    last = torch.where(taken, torch.arange(len(boxes), device=iou.device)[:, None], -1).amax(0)
    return last.where(last >= 0, found)


def by_anchor(maps: Sequence[Tensor], width: int) -> Tensor:
    """What a head says of every anchor, (B, N, width), of its map of each level, (B, anchors * width, h, w)."""
    # Not len(x), which a tracer takes for a constant.
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps], 1)


def above(logits: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, rows and columns of what is above a threshold in a matrix, at most so many of the largest."""
    flat = logits.flatten()
    places = (flat > threshold).nonzero().squeeze(1)
    values = flat[places]
    if len(values) > most:
        values, order = values.topk(most)
        places = places[order]
    return values, places // logits.shape[1], places % logits.shape[1]


def keep_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], threshold: float, most: int
) -> dict[str, Tensor]:
    """What is left of boxes when each class has none that overlaps a better one of it.

    Args:
        boxes: (n, 4), in pixels; clipped to the picture, and left out if that leaves nothing of them.
        scores: (n,).
        labels: (n,).
        size: Height and width of the picture.
        threshold: Intersection over union above which the lesser box goes.
        most: The number of boxes kept at most.

    Returns:
        ``boxes``, ``scores`` and ``labels``, best first.
    """
    boxes = clip_boxes_to_image(boxes, size)
    places = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero().squeeze(1)
    places = places[batched_nms(boxes[places], scores[places], labels[places], threshold)[:most]]
    return {"boxes": boxes[places], "scores": scores[places], "labels": labels[places]}
