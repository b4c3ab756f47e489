"""What networks are judged by: a score's name, how it is written, and which of two values is the better one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """One of the numbers that an evaluation comes to. A task lists its own; the first is the one it is chosen by.

    Attributes:
        key: Its name in logs (``val/top1``), files and tables.
        label: As people write it, e.g. ``top-1``.
        direction: Whether the greatest or the least value is the best.
        digits: Shown after the decimal point.
        unit: Blank for none.
        share: Whether it is the share of the pictures that were answered right, whose standard error follows from
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
        """The label with the unit, for the head of a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def number(self, value: float) -> str:
        """A value with its digits; ``-`` for a share of nothing, such as that of objects of a size that none has."""
        return "-" if math.isnan(value) and self.unit == "%" else f"{value:.{self.digits}f}"

    def written(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


def score_of(logged: str, scores: Iterable[Score]) -> Score | None:
    """The one that is logged as ``val/top1``, of other networks as ``val/top1_ema`` and the like; None for none."""
    named = [score for score in scores if f"{logged}_".startswith(f"val/{score.key}_")]
    return max(named, key=lambda score: len(score.key), default=None)


#: Of every evaluation, beside the task's own scores.
LOSS = Score("loss", "loss", "min", digits=4, unit="")
