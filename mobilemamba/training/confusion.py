"""Which classes are taken for which: counts that take no more memory than there are pictures, and what they say."""

from __future__ import annotations

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
    pictures: int  # of it
    correct: int  # of these
    taken_for: int | None  # index of the class it is most often taken for; None if for none
    mistaken: int  # how often it is


def class_scores(counts: Tensor) -> list[ClassScore]:
    """Every class that has pictures, the worst known first.

    Args:
        counts: As :meth:`ConfusionCounts.compute` gives them.
    """
    classes: dict[int, dict[int, int]] = {}
    for target, answer, count in counts.tolist():
        classes.setdefault(target, {})[answer] = count
    scores = []
    for index, answers in classes.items():
        wrong = {answer: count for answer, count in answers.items() if answer != index}
        worst = max(wrong, key=lambda answer: wrong[answer], default=None)
        mistaken = 0 if worst is None else wrong[worst]
        scores.append(ClassScore(index, sum(answers.values()), answers.get(index, 0), worst, mistaken))
    return sorted(scores, key=lambda score: score.correct / score.pictures)
