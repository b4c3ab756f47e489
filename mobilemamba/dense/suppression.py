"""Non-maximum suppression of a detector's candidates in a graph of fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from mobilemamba.dense.candidates import Rules

#: Place of all boxes that are no object: on top of each other, so that suppression leaves one.
_NOWHERE = (-2.0, -2.0, -1.0, -1.0)


class Suppressing(nn.Module):
    """Maps pictures (B, in_chans, H, W) to the candidates, (B, N, 4 + classes), and their :func:`objects_of`.

    Args:
        candidates: Maps pictures to candidates as :class:`~mobilemamba.dense.candidates.Candidates` does.
        rules: Rules that choose the objects.
    """

    def __init__(self, candidates: nn.Module, rules: Rules):
        super().__init__()
        self.candidates, self.rules = candidates, rules

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        candidates = self.candidates(images)
        return candidates, objects_of(candidates, self.rules, (images.shape[-2], images.shape[-1]))


def objects_of(candidates: Tensor, rules: Rules, size: tuple[int, int]) -> Tensor:
    """Returns the objects of each picture, (B, ``rules.max_boxes``, 6), best first; zeros if there are fewer.

    Each has its box as the candidates have it, its probability, and the number of its class. It does what
    :func:`~mobilemamba.dense.boxes.keep_best` does, without shapes that depend on values.

    Args:
        candidates: (B, N, 4 + classes).
        rules: Rules that choose the objects.
        size: Height and width of the pictures, because overlaps are measured in pixels.
    """
    return torch.stack([_objects(of_one, rules, size) for of_one in candidates.unbind()])


def _objects(candidates_NX: Tensor, rules: Rules, size: tuple[int, int]) -> Tensor:
    """Returns the objects of one picture, (K, 6)."""
    found = []
    for level in candidates_NX.split(rules.levels):
        classes = level.shape[1] - 4
        score_M, at_M = level[:, 4:].flatten().topk(min(rules.candidates, len(level) * classes))
        label_M = (at_M % classes).to(level.dtype)
        found.append(torch.cat([level[at_M // classes, :4], score_M[:, None], label_M[:, None]], 1))
    found_M6 = torch.cat(found)
    box_M4, score_M, label_M1 = found_M6[:, :4], found_M6[:, 4], found_M6[:, 5:]
    score_M = score_M * ((box_M4[:, 2:] > box_M4[:, :2]).all(1) & (score_M > rules.score_threshold))
    pixels_M4 = box_M4 * box_M4.new_tensor([size[1], size[0]] * 2)
    apart_M4 = pixels_M4 + label_M1 * (max(size) + 1)  # so that boxes of different classes never overlap
    apart_M4 = torch.where(score_M[:, None] > 0, apart_M4, apart_M4.new_tensor(_NOWHERE))
    left_M = torch.zeros_like(score_M).scatter(0, nms(apart_M4, score_M, rules.overlap), 1.0)
    score_K, at_K = (score_M * left_M).topk(min(rules.max_boxes, len(found_M6)))
    return found_M6[at_K] * (score_K > 0)[:, None]
