"""Regions of a picture: their part of the levels, and masks within them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def pool_regions(levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int) -> Tensor:
    """Each box's part of the level that suits its size, resampled to (n, D, side, side); n is of all pictures.

    Boxes of an area of (14 cells of the finest level) squared and less read that, and each twice as large the next.
    torchvision's ``MultiScaleRoIAlign`` does not offer ``aligned``, without which all is half a cell off.

    Args:
        levels: (B, D, h, w) each, the finest first.
        strides: Of the levels.
        boxes: Of each picture (n_i, 4), in its pixels.
        side: Of the result.
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
        parts.append(roi_align(level.float(), regions[at], side, 1 / stride, sampling_ratio=0, aligned=True))
    return torch.cat(parts)[torch.cat(places).argsort()].to(levels[0].dtype)


def cut_masks(masks: Tensor, of: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The part of a mask within each box, resampled to (n, side, side) of 0 and 1: what a mask head is to find.

    Args:
        masks: (N, H, W) of a picture, padded as the picture is.
        of: Which of them each box is for, (n,).
        boxes: (n, 4), in pixels.
        side: Of the result.
    """
    limits = boxes.new_tensor([masks.shape[2], masks.shape[1]]).repeat(2)
    boxes = boxes.clamp(min=0).minimum(limits)
    regions = torch.cat((of[:, None].to(boxes.dtype), boxes), 1)
    parts = roi_align(masks[:, None].to(boxes.dtype), regions, side, 1.0, sampling_ratio=0, aligned=True)
    return (parts[:, 0] >= 0.5).to(boxes.dtype)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks of boxes as masks of the picture, (n, height, width) of bool; bilinear between the centres of cells.

    A pixel belongs to a mask from a probability of 0.5 on.

    torchvision's ``paste_masks_in_image`` rounds boxes to whole pixels.

    Args:
        masks: Probabilities (n, m, m) within the boxes.
        boxes: (n, 4), in pixels of the picture, wherever it is to be seen: at its own size, say.
        size: Height and width of the picture.
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
