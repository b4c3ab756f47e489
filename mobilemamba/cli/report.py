"""What ``validate`` and ``test`` print."""

from __future__ import annotations

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
    metrics: Mapping[str, Any], scores: Sequence[Score], split: str, title: str, pictures: int | None
) -> None:
    """A table of every network that was evaluated, and whether folding the norms changed an answer to a picture."""
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
        of = f" of {pictures:,}" if pictures else ""
        say(f"folding the norms changes the answer to {int(changed)}{of} pictures", console)


def print_classes(counts: Tensor, class_names: Sequence[str], path: str | None) -> None:
    """The classes that are known worst, and all of them in a CSV file if it has a path."""
    scores, names = class_scores(counts), [*map(printable, class_names)]
    rows: list[dict[str, Any]] = [
        {
            "class": names[score.label],
            "pictures": score.pictures,
            "top-1 (%)": f"{100 * score.correct / score.pictures:.2f}",
            "most often taken for": "" if score.taken_for is None else names[score.taken_for],
            "times": score.mistaken or "",
        }
        for score in scores
    ]
    if not rows:
        return
    console = make_console()
    lines = [[str(value) for value in row.values()] for row in rows[:_WORST]]
    console.print(fit_table(console.width, list(rows[0]), lines, numeric=[1, 2, 4], title="classes, the worst first"))
    if path is not None:
        write_text_atomic(path, csv_text(rows))
        say(f"all {len(rows):,} classes: {path}", console)
    elif len(rows) > _WORST:
        say(f"and {len(rows) - _WORST:,} more classes; --per_class FILE.csv writes all", console)
