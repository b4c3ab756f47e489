"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from mobilemamba.dense.anchors import Anchors, boxes_of_ratios
from mobilemamba.dense.boxes import IGNORED, BoxCoder, above, assign
from mobilemamba.dense.release_names import RETINANET, Names
from mobilemamba.dense.single_stage import SingleStageDetector

_ALPHA = 0.25
_USUAL_DIM = 256


def _focal(logits: Tensor) -> Tensor:
    """Returns the loss of each logit that should be low, times the square of its probability."""
    return logits.sigmoid().square() * F.softplus(logits)


class RetinaNet(SingleStageDetector):
    """torchvision's RetinaNet head on a pyramid, with a logit for each class but none for the background.

    torchvision's own RetinaNet divides losses by each picture's positives and averages over pictures; here their sum is
    divided by the positives of the batch.
    """

    release_names: Names = RETINANET

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, strides: Sequence[int], num_classes: int, dim: int, **options: Any
    ):
        octaves = [2 ** (third / 3) for third in range(3)]
        boxes = [boxes_of_ratios([4 * stride * octave for octave in octaves]) for stride in strides]
        anchors = Anchors(strides, boxes)
        head = RetinaNetHead(dim, anchors.per_cell, num_classes)
        if dim != _USUAL_DIM:  # torchvision's initialisation is for this width; signals would vanish in a narrower head
            for name, weight in head.named_parameters():
                if name.endswith("weight"):
                    weight.data *= (_USUAL_DIM / dim) ** 0.5
        super().__init__(backbone, neck, head, num_classes, anchors, BoxCoder((1.0, 1.0, 1.0, 1.0)), **options)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return (self.head.get_submodule("classification_head.cls_logits"),)

    def match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        return assign(anchors, boxes, positive=0.5, negative=0.4)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Computes torchvision's ``sigmoid_focal_loss`` in less than half its time and memory.

        It counts all logits as background, and then corrects those that are not.
        """
        at = (labels >= 0).nonzero(as_tuple=True)
        here = logits[(*at, labels[at])]
        background = (_focal(logits).sum(-1) * (labels != IGNORED)).sum()
        return (1 - _ALPHA) * (background - _focal(here).sum()) + _ALPHA * _focal(-here).sum()

    def box_loss(self, codes: Tensor, expected: Tensor) -> Tensor:
        return F.l1_loss(codes, expected, reduction="sum")

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the candidates as in the base class, but compares logits, as only few are worth a sigmoid."""
        threshold = torch.logit(torch.tensor(self.score_threshold)).item()
        values, at, labels = above(logits, threshold, self.candidates)
        return values.float().sigmoid(), at, labels
