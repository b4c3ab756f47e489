"""Boxes (x1, y1, x2, y2): how anchors are assigned to them, how a head encodes them, and which detections are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import _utils
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from mobilemamba.errors import ConfigError

#: Indices for anchors that no box is assigned to.
BACKGROUND, IGNORED = -1, -2


class BoxCoder(_utils.BoxCoder):
    """torchvision's coder, which limits how much larger a box is than its anchor; here also how much smaller."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Decodes codes (n, 4) of n anchors into boxes (n, 4); in pairs of columns, for simple exported graphs."""
        start, end = boxes.chunk(2, 1)
        sides = end - start
        shift, growth = (rel_codes / rel_codes.new_tensor(self.weights)).chunk(2, 1)
        centre = shift * sides + (start + 0.5 * sides)
        half = 0.5 * (growth.clamp(-self.bbox_xform_clip, self.bbox_xform_clip).exp() * sides)
        return torch.cat((centre - half, centre + half), 1)


class Wanted(NamedTuple):
    """The n objects of a picture that training should find."""

    boxes: Tensor  # (n, 4)
    labels: Tensor  # (n,)
    places: Tensor  # (n,), their indices among all N of the target


def wanted(target: Mapping[str, Any], num_classes: int) -> Wanted:
    """Selects the objects of a picture that training should find: no crowds, and nothing without an area.

    Args:
        target: ``boxes`` (N, 4), ``labels`` (N,) from 0, and ``iscrowd`` (N,) if there are crowds.
        num_classes: Classes.

    Raises:
        ConfigError: If a label is not in the range of the classes.
    """
    boxes, labels = target["boxes"].float().view(-1, 4), target["labels"]
    # False for NaN and for infinite sides.
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    if "iscrowd" in target:
        kept &= ~target["iscrowd"].bool()
    places = kept.nonzero().squeeze(1)
    labels = labels[places]
    if len(wrong := labels[(labels < 0) | (labels >= num_classes)]):
        raise ConfigError(f"label {wrong[0].item()} of a box: expected 0 to {num_classes - 1}; count classes from 0")
    return Wanted(boxes[places], labels, places)


def assign(
    anchors: Tensor, boxes: Tensor, positive: float, negative: float, *, lowest: float = 0.0, ties: bool = True
) -> Tensor:
    """Assigns boxes to anchors: returns (A,) indices into the boxes, ``BACKGROUND``, or ``IGNORED``.

    An anchor is assigned to the box with which its intersection over union is largest, if that is at least
    ``positive``, and to the background below ``negative``. Then each box also takes the anchors with which its own
    intersection over union is largest, however small; if several boxes take an anchor, the last one gets it.
    torchvision's matcher instead gives such an anchor to the box that it overlaps most, and does not accept an empty
    set of boxes.

    Args:
        anchors: (A, 4).
        boxes: (N, 4), each with an area.
        positive: See above.
        negative: See above; anchors between the two are ignored.
        lowest: A box takes no anchors whose intersection over union with it is lower, or zero.
        ties: Whether a box takes all anchors that share its largest intersection over union, or only the first.
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
    """Joins a head's maps of all levels, (B, anchors * width, h, w), to its outputs for every anchor, (B, N, width)."""
    # Not len(x), which a tracer would make a constant.
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps], 1)


def above(logits: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values, rows and columns of the elements above a threshold, but only of the ``most`` largest."""
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
    """Removes boxes that overlap a better box of the same class (non-maximum suppression).

    Args:
        boxes: (n, 4), in pixels; they are clipped to the picture, and removed if that leaves no area.
        scores: (n,).
        labels: (n,).
        size: Height and width of the picture.
        threshold: Intersection over union above which the box with the lower score is removed.
        most: The most boxes to keep.

    Returns:
        ``boxes``, ``scores`` and ``labels``, best first.
    """
    boxes = clip_boxes_to_image(boxes, size)
    places = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero().squeeze(1)
    places = places[batched_nms(boxes[places], scores[places], labels[places], threshold)[:most]]
    return {"boxes": boxes[places], "scores": scores[places], "labels": labels[places]}
