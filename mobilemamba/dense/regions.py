"""Regions of a picture: pooling them from feature maps, and masks within them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401 - registers its operators
from torch import Tensor


def pool_regions(levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Pools each box from the level that suits its size, to (n, D, side, side) for the n boxes of all pictures.

    Boxes of an area below 28 x 28 cells of the finest level read that level; each doubling of this side moves to the
    next. torchvision's ``MultiScaleRoIAlign`` does not offer ``aligned``, without which regions are off by half a cell.

    Args:
        levels: (B, D, h, w) each, the finest first.
        strides: Strides of the levels.
        boxes: (n_i, 4) for each picture, in its pixels.
        side: Side of the result.
    """
    joined = torch.cat(list(boxes))
    picture = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
    regions = torch.cat((picture, joined), 1)
    width, height = (joined[:, 2:] - joined[:, :2]).unbind(1)
    suits = torch.log2((width * height).sqrt() / (14 * strides[0]) + 1e-6).floor().clamp(0, len(levels) - 1)
    places, parts = [], []
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        at = (suits == i).nonzero().squeeze(1)
        places.append(at)
        parts.append(_align(level.float(), regions[at], side, 1 / stride))
    return torch.cat(parts)[torch.cat(places).argsort()].to(levels[0].dtype)


def cut_masks(masks: Tensor, of: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Returns the part of a mask within each box, resampled to (n, side, side) of 0 and 1: the mask head's target.

    Args:
        masks: (N, H, W) of a picture, padded as the picture is.
        of: Index of each box's mask, (n,).
        boxes: (n, 4), in pixels.
        side: Side of the result.
    """
    limits = boxes.new_tensor([masks.shape[2], masks.shape[1]]).repeat(2)
    boxes = boxes.clamp(min=0).minimum(limits)
    regions = torch.cat((of[:, None].to(boxes.dtype), boxes), 1)
    parts = _align(masks[:, None].to(boxes.dtype), regions, side, 1.0)
    return (parts[:, 0] >= 0.5).to(boxes.dtype)


def _align(maps: Tensor, regions: Tensor, side: int, scale: float) -> Tensor:
    """Does what torchvision's ``roi_align`` does with ``aligned``, always by its operator.

    On a GPU under deterministic algorithms, a run's default, its function instead weighs every cell of a map for every
    cell of every region, which takes hours or more memory than there is.

    Args:
        maps: (B, D, h, w).
        regions: Index of the map, then the box, (n, 5).
        side: Side of the result, (n, D, side, side).
        scale: Cells of the map per unit of a box.
    """
    return torch.ops.torchvision.roi_align(maps, regions, scale, side, side, 0, True)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Turns masks of boxes into masks of the picture, (n, height, width) bool, bilinearly between the centres of cells.

    A pixel belongs to a mask if its probability is at least 0.5. torchvision's ``paste_masks_in_image`` rounds boxes to
    whole pixels.

    Args:
        masks: Probabilities (n, m, m) within the boxes.
        boxes: (n, 4), in pixels of the picture at the size of the result.
        size: Height and width of the result.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    lows = boxes[:, :2].floor().clamp(min=0).int().tolist()
    highs = boxes[:, 2:].ceil().clamp(min=0).int().tolist()
    for mask, box, (left, top), (right, bottom), picture in zip(masks, boxes, lows, highs, pasted, strict=True):
        part = picture[top:bottom, left:right]
        if not part.numel():
            continue
        y, x = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5 for side in part.shape)
        sides = box[2:] - box[:2]
        x, y = (x + left - box[0]) / sides[0] * 2 - 1, (y + top - box[1]) / sides[1] * 2 - 1
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)
        part.copy_(F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5)
    return pasted
