"""Published accuracy against measured throughput, a line through each family of networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mobilemamba.analysis.benchmark.comparison import Conditions, grouped
from mobilemamba.analysis.benchmark.paper import family
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.figures import label_points, png_figure
from mobilemamba.errors import ConfigError

PANEL = (6.4, 4.6)  # inches
DPI = 120
_NAMES = {"mobilemamba": "MobileMamba", "efficientvit": "EfficientViT", "emo": "EMO"}
_COLOURS = {"mobilemamba": "#c1272d", "efficientvit": "#1f5fa8"}
_OTHERS = ("#5b8c2a", "#8a5aa8", "#b07a1e", "#3f8f8f", "#7a7a7a", "#d0609a", "#1a1a1a", "#6b4226")


def plot(records: list[Record], path: Path) -> None:
    """Draws a panel for each set of conditions (batch, dtype, mode, device); replaces the file atomically.

    Args:
        records: Those without an accuracy or without results are left out.
        path: A .png file.

    Raises:
        ConfigError: If no record has both.
        OSError: If the file cannot be written.
    """
    groups = {
        shared: known
        for shared, group in grouped(records).items()
        if (known := [record for record in group if record.paper_top1 is not None])
    }
    if not groups:
        raise ConfigError("nothing to plot: none of the networks measured has a published accuracy known here")
    columns = min(len(groups), 2)
    rows = math.ceil(len(groups) / columns)
    with png_figure(path, figsize=(PANEL[0] * columns, PANEL[1] * rows), dpi=DPI) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        families = list(dict.fromkeys(family(record.model) for group in groups.values() for record in group))
        others = [name for name in families if name not in _COLOURS]
        colours = _COLOURS | {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)}
        for axis, (shared, group) in zip(axes.flat, groups.items(), strict=False):
            _panel(axis, shared, group, colours)
        for axis in list(axes.flat)[len(groups) :]:
            axis.remove()
        lines = {str(line.get_label()): line for axis in figure.axes for line in axis.lines}
        figure.legend(
            list(lines.values()), list(lines), frameon=False, loc="outside lower center", ncols=min(len(lines), 5)
        )


def _panel(axis: Any, shared: Conditions, group: list[Record], colours: dict[str, str]) -> None:
    device, dtype, mode, train, batch = shared
    place = "" if device == "cpu" else f", {device}"
    axis.set(
        xscale="log",
        xlabel=f"{'training ' if train else ''}throughput (img/s, log scale), {group[0].processor}",
        ylabel="published ImageNet-1k top-1 (%)",
        title=f"batch {batch}, {dtype}, {mode}{', training' if train else ''}{place}",
    )
    axis.margins(0.18, 0.12)
    axis.grid(alpha=0.3)
    lines: list[Any] = []
    labels: list[Any] = []
    for name in dict.fromkeys(family(record.model) for record in group):
        own = sorted((r for r in group if family(r.model) == name), key=lambda r: (r.paper_top1, r.images_per_second))
        points = [(record.images_per_second, record.paper_top1) for record in own]
        style = {"marker": "o" if name == "mobilemamba" else "s", "markersize": 6, "linewidth": 1.8}
        axis.plot(*zip(*points, strict=True), color=colours[name], label=_NAMES.get(name, name), **style)
        lines.append(points)
        labels += [(*point, short_label(record), colours[name]) for point, record in zip(points, own, strict=True)]
    slowest, fastest = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if fastest > 5 * slowest else MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    label_points(axis, labels, lines)


def short_label(record: Record) -> str:
    """A network's size in its family, in capitals, with the picture's side."""
    size = record.model.removeprefix(f"{family(record.model)}_")
    return f"{size.upper()} ({record.size})"
