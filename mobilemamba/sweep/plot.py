"""The sweep as a picture: accuracy against FLOPs and against throughput, the paper's numbers in panels of their own."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mobilemamba.sweep.table import Record, describe

_AXES = {"flops_m": "FLOPs (M), paper's convention", "throughput": "throughput (img/s)"}


def plot(records: list[Record], title: str, path: Path, paper_note: str) -> None:
    """Draws all rows that have an accuracy; replaces the file atomically.

    Sample scores and the paper's never share a panel. Bars are one standard error of a share among the validation
    pictures: rows whose bars overlap are not told apart by this run.

    Raises:
        OSError: If the file cannot be written.
    """
    measured = [entry for entry in records if entry["top1"] is not None]
    paper = [entry for entry in records if entry["paper_top1"] is not None]
    colours = {entry["run"]: f"C{index % 10}" for index, entry in enumerate(records)}
    tall = 2 if paper else 1
    figure = Figure(figsize=(12, 5.2 + 3.2 * (tall - 1)), layout="constrained")
    axes = figure.subplots(tall, 2, squeeze=False, height_ratios=[5, 3][:tall])
    data = " / ".join(dict.fromkeys(str(entry["data"]) for entry in measured)) or "no row finished yet"
    devices = " / ".join(dict.fromkeys(str(entry["device"]) for entry in measured if entry["throughput"]))
    for axis, (key, label) in zip(axes[0], _AXES.items(), strict=True):
        points = [entry for entry in measured if entry[key] is not None]
        _scatter(axis, points, key, "top1", colours, "o")
        for entry in points:
            error = _standard_error(entry)
            axis.errorbar(entry[key], entry["top1"], error, fmt="none", ecolor=colours[entry["run"]], alpha=0.3)
        axis.set(
            xlabel=f"{label}, {devices}" if key == "throughput" and devices else label, ylabel=f"top-1 (%), {data}"
        )
    for axis, (key, label) in zip(axes[1] if paper else [], _AXES.items(), strict=False):
        _scatter(axis, [e for e in paper if e[f"paper_{key}"] is not None], f"paper_{key}", "paper_top1", colours, "D")
        axis.set(xlabel=label, ylabel="paper's top-1 (%)", title=f"paper: {paper_note}", facecolor="#f4f4f4")
        axis.title.set_fontsize(9)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    subtitle = "\n".join(describe(records)) or "nothing measured yet"
    figure.suptitle(f"{title}\n", fontweight="bold")
    figure.text(0.5, 0.965 if tall == 2 else 0.945, subtitle, ha="center", va="top", fontsize=8)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _scatter(axis: Any, points: list[Record], x: str, y: str, colours: dict[str, str], marker: str) -> None:
    hollow = {"facecolors": "none"} if marker == "D" else {}
    for entry in points:
        axis.scatter(
            entry[x],
            entry[y],
            marker=marker,
            edgecolors=colours[entry["run"]],
            **(hollow or {"c": colours[entry["run"]]}),
        )
    axis.margins(0.28, 0.18)
    axis.figure.canvas.draw()  # fixes the scales, by which labels are kept apart
    taken: list[tuple[float, float, float, float]] = []
    for entry in sorted(points, key=lambda entry: -entry[y]):
        centre = axis.transData.transform((entry[x], entry[y]))
        width, height = 5.2 * len(entry["run"]), 13.0
        offset = next((o for o in _offsets(width) if not _overlaps(_box(centre, o, width, height), taken)), (8, 0))
        taken.append(_box(centre, offset, width, height))
        axis.annotate(
            entry["run"],
            (entry[x], entry[y]),
            xytext=offset,
            textcoords="offset pixels",
            fontsize=8,
            color=colours[entry["run"]],
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colours[entry["run"]]} if abs(offset[1]) > 12 else None,
        )


def _offsets(width: float) -> list[tuple[float, float]]:
    heights = [0, 14, -14, 28, -28, 42, -42, 56, -56, 70, -70, 84, -84]
    return [(side, height) for height in heights for side in (8.0, -width - 8.0)]


def _box(centre: Any, offset: tuple[float, float], width: float, height: float) -> tuple[float, float, float, float]:
    left, bottom = centre[0] + offset[0], centre[1] + offset[1] - 3
    return left, bottom, left + width, bottom + height


def _overlaps(box: tuple[float, float, float, float], others: list[tuple[float, float, float, float]]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _standard_error(entry: Record) -> float:
    share, pictures = entry["top1"] / 100, entry["val_pictures"] or math.inf
    return 100 * math.sqrt(max(share * (1 - share), 0) / pictures)
