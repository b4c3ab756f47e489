"""What ``validate`` and ``test`` print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mobilemamba.files import write_text_atomic
from mobilemamba.scores import LOSS, Score
from mobilemamba.screen import fit_table, make_console, say
from mobilemamba.sweep.sheet import csv_text
from mobilemamba.text import printable
from mobilemamba.training.confusion import class_scores
from mobilemamba.training.metrics import Comparison

_NETWORKS = {"raw": "as trained", "ema": "averaged (EMA)", "fused": "norms folded"}

#: Lines of classes on the screen.
_WORST = 10


def print_scores(
    metrics: Mapping[str, Any],
    scores: Sequence[Score],
    split: str,
    title: str,
    total: int | None,
    counted: str = "pictures",
) -> None:
    """A table of every network that was evaluated, and whether folding the norms changed an answer.

    Args:
        metrics: What was logged.
        scores: Of the task.
        split: ``"val"`` or ``"test"``.
        title: Above it.
        total: How much was answered, if that is known.
        counted: What these are.
    """
    console = make_console()
    say(title, console)
    shown, lines = [*scores, LOSS], []
    for network, label in _NETWORKS.items():
        suffix = Comparison.SUFFIXES[network]
        found = [(score, f"{split}/{score.key}{suffix}") for score in shown]
        if found[0][1] in metrics:
            lines.append([label, *(f"{float(metrics[name]):.{score.digits}f}" for score, name in found)])
    header = ["network", *(score.head for score in shown)]
    if not lines:  # another module than a task of ours
        header, lines = ["metric", "value"], [[name, f"{float(value):g}"] for name, value in metrics.items()]
    console.print(fit_table(console.width, header, lines, numeric=range(1, len(header))))
    changed = metrics.get(f"{split}/fused_changed")
    if changed is not None:
        of = f" of {total:,}" if total else ""
        say(f"folding the norms changes the answer to {int(changed):,}{of} {counted}", console)


def print_classes(
    counts: Tensor, class_names: Sequence[str], path: str | None, counted: str = "pictures", *, worst_first: bool = True
) -> None:
    """How well classes are known, on the screen and in a CSV file if it has a path.

    Of pictures the classes that are known worst, and all of them in the file; of pixels all.

    Args:
        counts: As :meth:`~mobilemamba.training.confusion.ConfusionCounts.compute` gives them.
        class_names: In the order of the labels.
        path: Of the file.
        counted: What was counted, ``"pictures"`` or ``"pixels"``.
        worst_first: Else in the order of the labels.
    """
    of_pixels, names = counted == "pixels", [*map(printable, class_names)]
    scores = [score for score in class_scores(counts) if of_pixels or score.total]
    if worst_first:
        scores.sort(key=lambda score: score.iou if of_pixels else score.accuracy)
    rows: list[dict[str, Any]] = [
        {
            "class": names[score.label],
            counted: score.total,
            **({"IoU (%)": _percent(score.iou)} if of_pixels else {}),
            "accuracy (%)" if of_pixels else "top-1 (%)": _percent(score.accuracy),
            "most often taken for": "" if score.taken_for is None else names[score.taken_for],
            "times": score.mistaken or "",
        }
        for score in scores
    ]
    if not rows:
        return
    console, most = make_console(), len(rows) if of_pixels else _WORST
    lines = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in rows[:most]]
    numeric = [index for index, name in enumerate(rows[0]) if name not in ("class", "most often taken for")]
    title = "classes, the worst first" if worst_first else "classes"
    console.print(fit_table(console.width, list(rows[0]), lines, numeric=numeric, title=title))
    if path is not None:
        write_text_atomic(path, csv_text(rows))
        say(f"all {len(rows):,} classes: {path}", console)
    elif len(rows) > most:
        say(f"and {len(rows) - most:,} more classes; --per_class FILE.csv writes all", console)


def _percent(share: float) -> str:
    """Blank for what there is none of."""
    return "" if math.isnan(share) else f"{100 * share:.2f}"
