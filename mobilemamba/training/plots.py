"""Plots of a training: learning curves, confusion of classes, and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobilemamba.analysis.figures import legible, png_figure
from mobilemamba.scores import Score, score_of
from mobilemamba.text import printable, shorten

if TYPE_CHECKING:
    from mobilemamba.training.detection_metrics import ClassPrecision

#: Most classes for which a matrix has legible names, and most for which its cells show numbers.
_MOST_NAMED, _MOST_NUMBERED = 40, 15
#: Most classes for which curves have colours and names.
_MOST_CURVES = 15
#: Number of confused pairs shown if there are too many classes for a matrix.
_PAIRS = 30


def draw_curves(history: list[dict[str, float]], scores: Sequence[Score], path: Path, title: str) -> None:
    """Plots losses, scores and the learning rate over the epochs; scores with the same unit share a panel.

    Args:
        history: Entries with ``epoch``, which may be fractional, and the values known then: ``train/loss``, ``lr``, and
            the validation's losses and scores as ``val/...``.
        scores: Scores that are logged.
        path: PNG file to write.
        title: Title of the figure.

    Raises:
        OSError: If the file cannot be written.
    """
    names = list(dict.fromkeys(name for entry in history for name in entry if name != "epoch"))
    losses = [name for name in names if "loss" in name]
    panels = {"loss": losses}
    for name in (name for name in names if name not in (*losses, "lr")):
        unit = (score_of(name, scores) or scores[0]).unit
        panels.setdefault(f"score ({unit})" if unit else "score", []).append(name)
    panels["learning rate"] = ["lr"]
    title = legible(title)
    with png_figure(path, [title], figsize=(4 * len(panels), 4)) as figure:
        figure.suptitle(title)
        for axis, (label, shown) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for name in shown:
                points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
                if any(not math.isnan(value) for _, value in points):  # all NaN if there are no such objects
                    axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
            axis.set(xlabel="epoch", ylabel=label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
            if len(axis.lines) > 1:
                axis.legend(fontsize=8)


def draw_confusion(counts: Tensor, class_names: list[str], path: Path, title: str, counted: str = "pictures") -> None:
    """Plots a confusion matrix; if there are many classes, a bar chart of the most often confused pairs instead.

    Args:
        counts: Result of :meth:`~mobilemamba.training.confusion.ConfusionCounts.compute`.
        class_names: In the order of the indices; a name that no installed font can show is replaced by its index.
        path: PNG file to write.
        title: Title of the figure.
        counted: What is counted; unless it is pictures, cells show fractions.

    Raises:
        OSError: If the file cannot be written.
    """
    names, title = [_label(index, name) for index, name in enumerate(class_names)], legible(title)
    side = 3.5 + 0.32 * min(len(names), _MOST_NAMED) if len(names) <= _MOST_NAMED else 9
    longest = max(map(len, names), default=0)
    with png_figure(path, [title, *names], figsize=(side + 0.07 * longest, side)) as figure:
        axis = figure.subplots()
        axis.set_title(title, fontsize=10)
        draw = _matrix if len(names) <= _MOST_NAMED else _pairs
        draw(axis, counts, names, counted)


def draw_precision_recall(found: ClassPrecision, class_names: Sequence[str], path: Path, title: str) -> None:
    """Plots precision over recall at IoU 0.5 for each class and their mean; with AP50 of each if classes are few.

    Args:
        found: Precision of the classes.
        class_names: In the order of the indices.
        path: PNG file to write.
        title: Title of the figure.

    Raises:
        OSError: If the file cannot be written.
    """
    names, title = [_label(index, name) for index, name in enumerate(class_names)], legible(title)
    with png_figure(path, [title, *names], figsize=(8, 5)) as figure:
        axis = figure.subplots()
        axis.set_title(title, fontsize=10)
        known = [index for index, ap in enumerate(found.ap50_C.tolist()) if not math.isnan(ap)]
        for index in sorted(known, key=lambda index: -found.ap50_C[index]):
            named = {"label": f"{names[index]} {found.ap50_C[index]:.1f}"}
            style: dict[str, Any] = named if len(known) <= _MOST_CURVES else {"color": "0.8"}
            axis.plot(found.recall_R, found.precision_CR[index], lw=1, **style)
        if known:
            mean = f"mean of {len(known)} classes {found.ap50_C[known].mean():.1f}"
            axis.plot(found.recall_R, found.precision_CR[known].mean(0), color="black", lw=2.5, label=mean)
            axis.legend(fontsize=8, title="AP50 (%)", loc="upper left", bbox_to_anchor=(1, 1))
        axis.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)


def _matrix(axis: Any, counts: Tensor, names: list[str], counted: str) -> None:
    matrix = torch.zeros(len(names), len(names))
    matrix[counts[:, 0], counts[:, 1]] = counts[:, 2].float()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    axis.figure.colorbar(
        axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1), label="share of the class", shrink=0.8
    )
    for target, answer, count in counts.tolist() if len(names) <= _MOST_NUMBERED else []:
        share = shares[target, answer]
        text = f"{count:,}" if counted == "pictures" else f"{share:.1%}"
        axis.text(answer, target, text, ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="the network's answer", ylabel="class")


def _pairs(axis: Any, counts: Tensor, names: list[str], counted: str) -> None:
    totals = torch.zeros(len(names), dtype=torch.int64).index_add_(0, counts[:, 0], counts[:, 2]).tolist()
    wrong = [row for row in counts.tolist() if row[0] != row[1]]
    worst = sorted(wrong, key=lambda row: -row[2])[:_PAIRS]
    labels = [f"{names[target]} → {names[answer]}" for target, answer, _ in worst]
    bars = axis.barh(range(len(worst)), [count for *_, count in worst])
    axis.bar_label(bars, [f"{count:,} of {totals[target]:,}" for target, _, count in worst], fontsize=7, padding=3)
    axis.set_yticks(range(len(worst)), labels, fontsize=8)
    axis.margins(x=0.15, y=0.01)
    axis.invert_yaxis()
    shown = f"the {len(worst)} most frequent of {len(wrong):,} kinds of mistake" if wrong else "no mistakes"
    axis.set(xlabel=f"{counted}; class → the network's answer, {shown}")


def _label(index: int, name: str) -> str:
    return shorten(name) if (name := printable(name)) == legible(name) else f"class {index}"
