"""What ``validate`` and ``test`` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilemamba.screen import fit_table, make_console, say
from mobilemamba.training.evaluation import Comparison

_NETWORKS = {"raw": "as trained", "ema": "averaged (EMA)", "fused": "norms folded"}


def print_accuracies(metrics: Mapping[str, Any], split: str, title: str, pictures: int | None) -> None:
    """A table of every network that was evaluated, and whether folding the norms changed an answer.

    Args:
        metrics: Numbers as logged, e.g. ``val/top1_fused``.
        split: ``"val"`` or ``"test"``.
        title: What was evaluated on what.
        pictures: How many pictures were evaluated; None if unknown.
    """
    console = make_console()
    say(title, console)
    lines = []
    for network, label in _NETWORKS.items():
        suffix = Comparison.SUFFIXES[network]
        if f"{split}/top1{suffix}" in metrics:
            values = (float(metrics[f"{split}/{name}{suffix}"]) for name in ("top1", "top5", "loss"))
            lines.append([label, *(f"{value:.{digits}f}" for value, digits in zip(values, (3, 3, 4), strict=True))])
    header = ["network", "top-1 (%)", "top-5 (%)", "loss"]
    console.print(fit_table(console.width, header, lines, numeric=[1, 2, 3]))
    changed = metrics.get(f"{split}/fused_changed")
    if changed is not None:
        of = f" of {pictures:,}" if pictures else ""
        say(f"folding the norms changes the class of {int(changed)}{of} pictures", console)
