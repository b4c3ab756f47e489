"""Which classes are taken for which: counts that take no more memory than there are pictures, and what they say."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ConfusionCounts(Metric):
    """Counts of the pairs of classes (target, answer) that occur, over all processes.

    Not torchmetrics' confusion matrix: with deterministic algorithms, which a run has by default, that one compares
    every picture with all C * C cells, which is gigabytes for 1,000 classes.

    Args:
        num_classes: Outputs of the network.
    """

    full_state_update = False
    pairs: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("pairs", default=[], dist_reduce_fx="cat")

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Adds a batch: class indices (B,) int64 of both."""
        self.pairs.append(target * self.num_classes + answer)

    def compute(self) -> Tensor:
        """(n, 3) int64 on the CPU: target, answer and how often, in ascending order."""
        if not len(self.pairs):
            return torch.zeros(0, 3, dtype=torch.int64)
        pairs, counts = torch.unique(dim_zero_cat(self.pairs).cpu(), return_counts=True)
        return torch.stack([pairs // self.num_classes, pairs % self.num_classes, counts], dim=1)


class ClassScore(NamedTuple):
    """How well one class is known."""

    label: int  # index of the class
    total: int  # pictures of it, or pixels
    correct: int  # of these
    taken_for: int | None  # index of the class it is most often taken for; None if for none
    mistaken: int  # how often it is
    answers: int  # how often anything is taken for it

    @property
    def accuracy(self) -> float:
        """Share of the class that is known; NaN if there is nothing of it."""
        return self.correct / self.total if self.total else math.nan

    @property
    def iou(self) -> float:
        """Intersection over union of what is of the class and what is taken for it."""
        return self.correct / (self.total + self.answers - self.correct)


def class_scores(counts: Tensor) -> list[ClassScore]:
    """Every class that occurs, as itself or as an answer, in the order of the indices.

    Args:
        counts: As :meth:`ConfusionCounts.compute` gives them.
    """
    classes: dict[int, dict[int, int]] = {}
    answered: Counter[int] = Counter()
    for target, answer, count in counts.tolist():
        classes.setdefault(target, {})[answer] = count
        answered[answer] += count
    scores = []
    for index in sorted(classes.keys() | answered.keys()):
        answers = classes.get(index, {})
        wrong = {answer: count for answer, count in answers.items() if answer != index}
        worst = max(wrong, key=lambda answer: wrong[answer], default=None)
        mistaken = 0 if worst is None else wrong[worst]
        total, correct = sum(answers.values()), answers.get(index, 0)
        scores.append(ClassScore(index, total, correct, worst, mistaken, answered[index]))
    return scores
