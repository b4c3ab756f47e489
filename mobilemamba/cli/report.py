"""What ``validate`` and ``test`` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

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
    console = Console()
    console.print(title, highlight=False, soft_wrap=True)  # a table's own title is cut to its width
    table = Table()
    for column in ("network", "top-1 (%)", "top-5 (%)", "loss"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for network, label in _NETWORKS.items():
        suffix = Comparison.SUFFIXES[network]
        if f"{split}/top1{suffix}" in metrics:
            values = (float(metrics[f"{split}/{name}{suffix}"]) for name in ("top1", "top5", "loss"))
            table.add_row(label, *(f"{value:.{digits}f}" for value, digits in zip(values, (3, 3, 4), strict=True)))
    console.print(table)
    changed = metrics.get(f"{split}/fused_changed")
    if changed is not None:
        of = f" of {pictures:,}" if pictures else ""
        console.print(f"folding the norms changes the class of {int(changed)}{of} pictures", highlight=False)
