"""Segmentation metrics: all scores are computed from one confusion matrix of all pixels of a data set."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.dense.pixels import cross_entropies, likeliest
from mobilemamba.scores import Score
from mobilemamba.training.metrics import DeviceMean, Metrics


class ConfusionMatrix(Metric):
    """Confusion matrix of pixels, over all processes.

    Used instead of torchmetrics' confusion matrix, which compares every pixel with every cell under deterministic
    algorithms, and otherwise waits for the device at each update.

    Args:
        num_classes: Number of classes.
    """

    full_state_update = False
    matrix_CC: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix_CC", default=empty, dist_reduce_fx="sum")

    def update(self, answers: Tensor, targets: Tensor) -> None:
        """Adds pixels, both as class indices (B, H, W) int64; targets that are ``IGNORED_PIXEL`` do not count."""
        cells = self.num_classes**2
        pairs = (targets * self.num_classes + answers).masked_fill(targets == IGNORED_PIXEL, cells).flatten()
        counts = pairs.new_zeros(cells + 1).scatter_add_(0, pairs, torch.ones_like(pairs))
        self.matrix_CC += counts[:cells].view_as(self.matrix_CC)

    def compute(self) -> Tensor:
        """Returns the pixel counts (C, C) int64: a row per true class, a column per predicted class."""
        return self.matrix_CC


class SegmentationMetrics(Metrics):
    """mIoU, accuracy of all pixels and mean accuracy of the classes, in percent, and the mean cross entropy of pixels.

    Defined as in mmsegmentation: over the whole set, not averaged over pictures. Means leave out classes whose score is
    undefined: the IoU of a class that is neither present nor predicted, the accuracy of a class that is not present.
    ``IGNORED_PIXEL`` pixels do not count; so neither do pictures repeated to give all processes equal shares. Logits
    are scaled to the size of their targets before a pixel's class is chosen.
    """

    SCORES: ClassVar[tuple[Score, ...]] = (Score("miou", "mIoU"), Score("aacc", "aAcc"), Score("macc", "mAcc"))

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.confusion = ConfusionMatrix(num_classes)
        self.loss = DeviceMean()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits (B, classes, h, w) and classes (B, H, W) int64."""
        self.confusion.update(likeliest(outputs, (targets.shape[-2], targets.shape[-1])), targets)
        self.loss.update(cross_entropies(outputs, targets), targets != IGNORED_PIXEL)

    def compute(self) -> dict[str, Tensor]:
        """Returns ``miou``, ``aacc`` and ``macc`` in percent, and ``loss``, over all processes; then resets."""
        matrix_CC = self.confusion.compute()
        right_C, of_C, taken_C = matrix_CC.diagonal().double(), matrix_CC.sum(1), matrix_CC.sum(0)
        values = {
            "miou": 100 * (right_C / (of_C + taken_C - right_C)).nanmean(),
            "aacc": 100 * right_C.sum() / of_C.sum(),
            "macc": 100 * (right_C / of_C).nanmean(),
            "loss": self.loss.compute(),
        }
        pairs = matrix_CC.nonzero()
        self.counts = torch.cat([pairs, matrix_CC[matrix_CC > 0][:, None]], 1).cpu()
        self.confusion.reset()
        self.loss.reset()
        return {key: value.float() for key, value in values.items()}

    def changed(self, outputs: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Counts the pixels of a batch that two networks classify differently; arguments as for :meth:`update`."""
        size = targets.shape[-2], targets.shape[-1]
        return ((likeliest(outputs, size) != likeliest(others, size)) & (targets != IGNORED_PIXEL)).sum()
