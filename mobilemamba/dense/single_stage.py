"""Base class of detectors whose head finds classes and boxes of all anchors at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mobilemamba.dense.anchors import Anchors
from mobilemamba.dense.boxes import IGNORED, BoxCoder, above, keep_best, wanted
from mobilemamba.dense.detector import Detector, Sizes, padded, sizes_of, sizes_of_targets


class SingleStageDetector(Detector):
    """One head on all levels, from pictures (B, in_chans, H, W) to the logits and the boxes of N anchors.

    Args:
        backbone: Maps pictures to a list of maps.
        neck: Maps these to levels, the finest first.
        head: Maps levels to ``cls_logits`` (B, N, classes) and ``bbox_regression`` (B, N, 4), like torchvision's heads.
        num_classes: Classes without the background.
        anchors: Anchors of the levels.
        coder: Converts between boxes and the head's codes.
        options: Further options of :class:`~mobilemamba.dense.detector.Detector`.
    """

    score_threshold = 0.05
    max_boxes = 100
    overlap = 0.5
    candidates = 1000  # the most of a level

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        num_classes: int,
        anchors: Anchors,
        coder: BoxCoder,
        **options: Any,
    ):
        super().__init__(backbone, neck, num_classes, **options)
        self.head = head
        self.anchors = anchors
        self.coder = coder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the head's logits (B, N, classes) and box codes (B, N, 4), by level, row, column and anchor."""
        logits, codes, _ = self._heads(images)
        return logits, codes

    def _heads(self, images: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        levels = self.levels(images)
        found = self.head(levels)
        return found["cls_logits"], found["bbox_regression"], [(x.shape[-2], x.shape[-1]) for x in levels]

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        logits, codes, grids = self._heads(images)
        anchors = torch.cat(self.anchors(grids, images.device))
        labels, matched, box_loss, positives = [], [], codes.new_zeros((), dtype=torch.float32), 0
        for target, code, size in zip(targets, codes.float(), sizes_of_targets(images, targets), strict=True):
            own = wanted(target, self.num_classes)
            found = self.match(anchors, own.boxes)
            found[~self.anchors.within(grids, padded(size, self.divisor), images.device)] = IGNORED
            at = (found >= 0).nonzero().squeeze(1)
            matched.append(found)
            labels.append(found.clone().index_put_((at,), own.labels[found[at]]))
            box_loss = box_loss + self.box_loss(code[at], self.coder.encode_single(own.boxes[found[at]], anchors[at]))
            positives += max(1, len(at))
        return {
            "class": self.class_loss(logits.float(), torch.stack(labels)) / positives,
            "box": box_loss / positives,
        }

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        logits, codes, grids = self._heads(images)
        levels = self.anchors(grids, images.device)
        lengths, anchors = [len(level) for level in levels], torch.cat(levels)
        starts = [0, *accumulate(lengths[:-1])]
        detections = []
        for picture, size in enumerate(sizes_of(images, sizes)):
            # Cells beyond a picture that is smaller than its batch are never trained, so their scores mean nothing.
            inside = self.anchors.within(grids, padded(size, self.divisor), images.device)
            scores, places, labels = [], [], []
            for start, logit, own in zip(starts, logits[picture].split(lengths), inside.split(lengths), strict=True):
                seen = own.nonzero().squeeze(1)
                score, at, label = self.best(logit if len(seen) == len(own) else logit[seen])
                scores.append(score)
                places.append(seen[at] + start)
                labels.append(label)
            at = torch.cat(places)
            boxes = self.coder.decode_single(codes[picture, at].float(), anchors[at])
            found = boxes, torch.cat(scores), torch.cat(labels)
            detections.append(keep_best(*found, size, self.overlap, self.max_boxes))
        return detections

    def candidates_of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the boxes (B, N, 4) in pixels and probabilities (B, N, classes) of every anchor, in float32."""
        logits, codes, grids = self._heads(images)
        anchors = torch.cat(self.anchors(grids, images.device)).expand(codes.shape[0], -1, -1).flatten(0, 1)
        boxes = self.coder.decode_single(codes.float().flatten(0, 1), anchors)
        return boxes.view_as(codes), self.probabilities(logits.float())

    def match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Assigns boxes to anchors, as :func:`~mobilemamba.dense.boxes.assign` does."""
        raise NotImplementedError

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the summed loss of logits (B, N, classes) for labels (B, N) from 0, ``BACKGROUND`` or ``IGNORED``."""
        raise NotImplementedError

    def box_loss(self, codes: Tensor, expected: Tensor) -> Tensor:
        """Returns the summed loss of codes (n, 4) for the expected ones (n, 4)."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probabilities of the classes without the background, (..., classes), from the head's logits."""
        raise NotImplementedError

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns scores, anchor indices and labels of a level's candidates, from its logits."""
        return above(self.probabilities(logits.float()), self.score_threshold, self.candidates)
