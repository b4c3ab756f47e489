"""Output of ``validate`` and ``test``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError
from mobilemamba.files import write_text_atomic
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba.scores import LOSS, Score
from mobilemamba.screen import fit_table, make_console, say
from mobilemamba.sweep.sheet import csv_text
from mobilemamba.text import printable
from mobilemamba.training.callbacks.plots import draw_classes
from mobilemamba.training.confusion import class_scores
from mobilemamba.training.contract import TaskContract, scores_of
from mobilemamba.training.loaders import pictures_evaluated
from mobilemamba.training.metrics import Comparison

_NETWORKS = {"raw": "", "ema": "averaged (EMA)", "fused": "norms folded"}

#: Number of classes shown on the screen.
_WORST = 10


def print_evaluation(trainer: Trainer, module: LightningModule, data: DataModule, split: str, settings: Any) -> None:
    """Prints the scores, then the classes of the better network, and writes plots of them if a folder is given.

    Args:
        trainer: The trainer after the evaluation.
        module: The evaluated module.
        data: The data module.
        split: ``"val"`` or ``"test"``.
        settings: Settings of the command.

    Raises:
        ConfigError: If a file of classes is requested and the module does not count classes.
    """
    task = module if isinstance(module, TaskContract) else None
    network, head = getattr(module.hparams, "name", type(module).__name__), getattr(module.hparams, "head", None)
    title = f"{network}{f' with {head}' if head else ''} on {data.name}"
    title += f", {data.image_hw[0]}x{data.image_hw[1]} px"
    title += f", in windows of {settings.window} px" if settings.window else ""
    title += ", averaged over 12 views" if settings.tta else ""
    if split == "test" and data.test_set is None:
        title += "; its validation pictures, as it has no others for a test"
    pictures = pictures_evaluated(trainer, split)
    counts = None if task is None else task.confusion
    counted = "pictures" if task is None else task.counted
    total = pictures if counts is None or counted == "pictures" else int(counts[:, 2].sum())
    raw = "as exported" if task is not None and isinstance(task.model, RuntimeNetwork) else "as trained"
    print_scores(trainer.callback_metrics, scores_of(module), split, title, total, counted, raw)
    if task is None or counts is None:
        if settings.per_class is not None:
            raise ConfigError(f"per_class={settings.per_class}: the task counts no classes; leave it out")
        return
    worst_first, names = counted == "pictures" or settings.worst_first, list(data.class_names)
    whose = f", {_NETWORKS['ema']}" if task.average_is_better(trainer.callback_metrics) else ""
    heading = f"classes{whose}{', the worst first' if worst_first else ''}"
    if (rows := task.class_rows(worst_first=worst_first)) is not None:
        print_rows(rows, settings.per_class, heading, len(rows))
    else:
        print_classes(counts, names, settings.per_class, counted, heading, worst_first=worst_first)
    if settings.plots is not None:
        folder = Path(settings.plots)
        draw_classes(folder, counts.long(), task.curves, names, title + whose, counted)
        rank_zero_info(f"pictures: {printable(folder)}")


def print_scores(
    metrics: Mapping[str, Any],
    scores: Sequence[Score],
    split: str,
    title: str,
    total: int | None,
    counted: str = "pictures",
    raw: str = "as trained",
) -> None:
    """Prints a table of all evaluated networks, and how many predictions folding the norms has changed.

    Args:
        metrics: The logged metrics.
        scores: Scores of the task.
        split: ``"val"`` or ``"test"``.
        title: Title of the table.
        total: Number of predictions, if known.
        counted: What the predictions are for.
        raw: Label of the network to which nothing was done.
    """
    console = make_console()
    say(title, console)
    shown, lines = [score for score in (*scores, LOSS) if f"{split}/{score.key}" in metrics], []
    for network, label in (_NETWORKS | {"raw": raw}).items():
        suffix = Comparison.SUFFIXES[network]
        found = [(score, f"{split}/{score.key}{suffix}") for score in shown]
        if found and found[0][1] in metrics:
            lines.append([label, *(score.number(float(metrics[name])) for score, name in found)])
    header = ["network", *(score.head for score in shown)]
    if not lines:  # the module is not one of our tasks
        header, lines = ["metric", "value"], [[name, f"{float(value):g}"] for name, value in metrics.items()]
    console.print(fit_table(console.width, header, lines, numeric=range(1, len(header))))
    changed = metrics.get(f"{split}/fused_changed")
    if changed is not None:
        of = f" of {total:,}" if total else ""
        say(f"folding the norms changes the answer to {int(changed):,}{of} {counted}", console)


def print_classes(
    counts: Tensor,
    class_names: Sequence[str],
    path: str | None,
    counted: str = "pictures",
    title: str = "classes",
    *,
    worst_first: bool = True,
) -> None:
    """Prints the scores of the classes, and writes them to a CSV file if a path is given.

    The screen shows all classes of pixels, but only the first few classes of pictures; the file has all.

    Args:
        counts: Result of :meth:`~mobilemamba.training.confusion.ConfusionCounts.compute`.
        class_names: In the order of the labels.
        path: Path of the file, or None.
        counted: What was counted, ``"pictures"`` or ``"pixels"``.
        title: Title of the table.
        worst_first: Whether to sort from worst to best, rather than by label.
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
    print_rows(rows, path, title, len(rows) if of_pixels else _WORST)


def print_rows(rows: list[dict[str, Any]], path: str | None, title: str, most: int) -> None:
    """Prints rows about classes, and writes all of them to a CSV file if a path is given.

    Args:
        rows: Column headers -> values, the first being ``class``.
        path: Path of the file, or None.
        title: Title of the table.
        most: Largest number of rows on the screen.
    """
    if not rows:
        return
    console = make_console()
    lines = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in rows[:most]]
    numeric = [index for index, name in enumerate(rows[0]) if name not in ("class", "most often taken for")]
    console.print(fit_table(console.width, list(rows[0]), lines, numeric=numeric, title=title))
    if path is not None:
        write_text_atomic(path, csv_text(rows))
        say(f"all {len(rows):,} classes: {path}", console)
    elif len(rows) > most:
        say(f"and {len(rows) - most:,} more classes; --per_class FILE.csv writes all", console)


def _percent(share: float) -> str:
    """Formats a fraction in percent; empty if it is NaN."""
    return "" if math.isnan(share) else f"{100 * share:.2f}"
