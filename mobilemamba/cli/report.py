"""What ``validate`` and ``test`` print."""

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
from mobilemamba.training.metrics import Comparison
from mobilemamba.training.provenance import pictures_used

_NETWORKS = {"raw": "", "ema": "averaged (EMA)", "fused": "norms folded"}

#: Lines of classes on the screen.
_WORST = 10


def print_evaluation(trainer: Trainer, module: LightningModule, data: DataModule, split: str, settings: Any) -> None:
    """All of it: the scores, then the classes, and pictures of them where a folder is given.

    Args:
        trainer: That evaluated.
        module: What it evaluated.
        data: On what.
        split: ``"val"`` or ``"test"``.
        settings: Of the command.

    Raises:
        ConfigError: If a file of classes is asked for and the module counts none.
    """
    task = module if isinstance(module, TaskContract) else None
    network, head = getattr(module.hparams, "name", type(module).__name__), getattr(module.hparams, "head", None)
    title = f"{network}{f' with {head}' if head else ''} on {data.name}"
    title += f", {data.image_hw[0]}x{data.image_hw[1]} px"
    title += f", in windows of {settings.window} px" if settings.window else ""
    title += ", averaged over 12 views" if settings.tta else ""
    if split == "test" and data.test_set is None:
        title += "; its validation pictures, as it has no others for a test"
    batches, loaders = (getattr(trainer, name) for name in (f"num_{split}_batches", f"{split}_dataloaders"))
    pictures = pictures_used(loaders, batches, trainer.world_size)
    counts = None if task is None else task.confusion.get("raw")
    counted = "pictures" if task is None else task.counted
    total = pictures if counts is None or counted == "pictures" else int(counts[:, 2].sum())
    raw = "as exported" if task is not None and isinstance(task.model, RuntimeNetwork) else "as trained"
    print_scores(trainer.callback_metrics, scores_of(module), split, title, total, counted, raw)
    if task is None or counts is None:
        if settings.per_class is not None:
            raise ConfigError(f"per_class={settings.per_class}: the task counts no classes; leave it out")
        return
    worst_first, names = counted == "pictures" or settings.worst_first, list(data.class_names)
    if (rows := task.class_rows(worst_first=worst_first)) is not None:
        print_rows(rows, settings.per_class, "classes", len(rows))
    else:
        print_classes(counts, names, settings.per_class, counted, worst_first=worst_first)
    if settings.plots is not None:
        folder = Path(settings.plots)
        draw_classes(folder, counts.long(), task.curves, names, title, counted)
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
    """A table of every network that was evaluated, and whether folding the norms changed an answer.

    Args:
        metrics: What was logged.
        scores: Of the task.
        split: ``"val"`` or ``"test"``.
        title: Above it.
        total: How much was answered, if that is known.
        counted: What these are.
        raw: What the network is called that nothing was done to.
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
    title = "classes, the worst first" if worst_first else "classes"
    print_rows(rows, path, title, len(rows) if of_pixels else _WORST)


def print_rows(rows: list[dict[str, Any]], path: str | None, title: str, most: int) -> None:
    """Lines about classes on the screen, and all of them in a CSV file if it has a path.

    Args:
        rows: Heads of columns to values, first the ``class``.
        path: Of the file.
        title: Above the table.
        most: Lines on the screen.
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
    """Blank for what there is none of."""
    return "" if math.isnan(share) else f"{100 * share:.2f}"
