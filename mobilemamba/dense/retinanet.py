"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from mobilemamba.dense.anchors import Anchors, boxes_of_ratios
from mobilemamba.dense.boxes import IGNORED, BoxCoder, above, assign
from mobilemamba.dense.release_names import RETINANET, Names
from mobilemamba.dense.single_stage import SingleStageDetector


class RetinaNet(SingleStageDetector):
    """torchvision's head on a pyramid, with a logit of each class and none of the background.

    torchvision's own RetinaNet divides losses by each picture's positives and averages over pictures, here
    the sum is divided by those of the batch.
    """

    release_names: Names = RETINANET

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, strides: Sequence[int], num_classes: int, dim: int, **options: Any
    ):
        octaves = [2 ** (third / 3) for third in range(3)]
        boxes = [boxes_of_ratios([4 * stride * octave for octave in octaves]) for stride in strides]
        anchors = Anchors(strides, boxes)
        head = RetinaNetHead(dim, anchors.per_cell, num_classes)
        super().__init__(backbone, neck, head, num_classes, anchors, BoxCoder((1.0, 1.0, 1.0, 1.0)), **options)

    def match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        return assign(anchors, boxes, positive=0.5, negative=0.4)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        counted = labels != IGNORED
        expected = F.one_hot(labels[counted] + 1, self.num_classes + 1)[:, 1:]  # background first, for one_hot alone
        return sigmoid_focal_loss(logits[counted], expected.to(logits.dtype), reduction="sum")

    def box_loss(self, codes: Tensor, expected: Tensor) -> Tensor:
        return F.l1_loss(codes, expected, reduction="sum")

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        threshold = torch.logit(torch.tensor(self.score_threshold)).item()
        values, at, labels = above(logits, threshold, self.candidates)
        return values.float().sigmoid(), at, labels
