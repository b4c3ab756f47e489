"""Scores of networks: name, format, and which of two values is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Score:
    """A number that evaluates a network. A task lists its scores; the first one selects the best checkpoint.

    Attributes:
        key: Name in logs (``val/top1``), files and tables.
        label: Name for people, e.g. ``top-1``.
        direction: Whether the largest or the smallest value is best.
        digits: Digits after the decimal point.
        unit: Unit; empty for none.
        share: Whether it is the fraction of pictures that are classified correctly, whose standard error follows from
            their number.
    """

    key: str
    label: str
    direction: Literal["max", "min"] = "max"
    digits: int = 2
    unit: str = "%"
    share: bool = False

    @property
    def head(self) -> str:
        """Label with the unit, for the header of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def is_better(self, value: Any, other: Any) -> bool:
        """Whether a value is better than another one; both are numbers or tensors of one."""
        return bool(value > other if self.direction == "max" else value < other)

    def number(self, value: float) -> str:
        """Formats a value without its unit; ``-`` for an undefined percentage, e.g. for a size that no object has."""
        return "-" if math.isnan(value) and self.unit == "%" else f"{value:.{self.digits}f}"

    def written(self, value: float) -> str:
        """Formats a value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


def score_of(logged: str, scores: Iterable[Score]) -> Score | None:
    """Returns the score that is logged under a name like ``val/top1`` or ``val/top1_ema``; None if there is none."""
    named = [score for score in scores if f"{logged}_".startswith(f"val/{score.key}_")]
    return max(named, key=lambda score: len(score.key), default=None)


#: The loss, which every evaluation has in addition to the task's scores.
LOSS = Score("loss", "loss", "min", digits=4, unit="")
