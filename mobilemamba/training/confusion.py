"""Confusion of classes: counts whose memory grows with the pictures, not with the classes squared, and class scores."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ConfusionCounts(Metric):
    """Counts the pairs of classes (target, prediction) that occur, over all processes.

    Used instead of torchmetrics' confusion matrix, which under deterministic algorithms, a run's default, compares
    every picture with all C * C cells: gigabytes for 1,000 classes.

    Args:
        num_classes: Number of classes.
    """

    full_state_update = False
    pairs: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("pairs", default=[], dist_reduce_fx="cat")

    def update(self, answer: Tensor, target: Tensor) -> None:
        """Adds a batch, both as class indices (B,) int64; targets below 0 do not count."""
        self.pairs.append((target * self.num_classes + answer).masked_fill(target < 0, -1))

    def compute(self) -> Tensor:
        """Returns (n, 3) int64 on the CPU: target, prediction and count, in ascending order."""
        if not len(self.pairs):
            return torch.zeros(0, 3, dtype=torch.int64)
        pairs = dim_zero_cat(self.pairs).cpu()
        pairs, counts = torch.unique(pairs[pairs >= 0], return_counts=True)
        return torch.stack([pairs // self.num_classes, pairs % self.num_classes, counts], dim=1)


class ClassScore(NamedTuple):
    """How well a network recognises one class."""

    label: int  # index of the class
    total: int  # number of its pictures or pixels
    correct: int  # how many of these are classified correctly
    taken_for: int | None  # index of the class that it is most often mistaken for; None if there is none
    mistaken: int  # how often it is mistaken for that class
    answers: int  # how often this class is predicted

    @property
    def accuracy(self) -> float:
        """Fraction of the class that is classified correctly; NaN if the class does not occur."""
        return self.correct / self.total if self.total else math.nan

    @property
    def iou(self) -> float:
        """Intersection over union of what belongs to the class and what is predicted to."""
        return self.correct / (self.total + self.answers - self.correct)


def class_scores(counts: Tensor) -> list[ClassScore]:
    """Returns the scores of every class that occurs as a target or a prediction, in the order of the indices.

    Args:
        counts: Result of :meth:`ConfusionCounts.compute`.
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
