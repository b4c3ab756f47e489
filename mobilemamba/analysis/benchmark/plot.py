"""Published accuracy against measured throughput, a line through each family of networks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mobilemamba.analysis.benchmark.comparison import Conditions, grouped
from mobilemamba.analysis.benchmark.paper import family
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.figures import png_figure
from mobilemamba.errors import ConfigError

PANEL = (6.4, 4.6)  # inches
DPI = 120
_NAMES = {"mobilemamba": "MobileMamba", "efficientvit": "EfficientViT", "emo": "EMO"}
_COLOURS = {"mobilemamba": "#c1272d", "efficientvit": "#1f5fa8"}
#: Where a label may stand, in points from its point, the best first.
_PLACES = ((8, 6), (-8, -6), (8, -6), (-8, 6), (8, 0), (-8, 0), (0, 13), (0, -13), (10, 16), (-10, -16), (12, -18))
_OTHERS = ("#5b8c2a", "#8a5aa8", "#b07a1e", "#3f8f8f", "#7a7a7a")


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
    lines = []
    for name in dict.fromkeys(family(record.model) for record in group):
        own = sorted((r for r in group if family(r.model) == name), key=lambda r: (r.paper_top1, r.images_per_second))
        points = [(record.images_per_second, record.paper_top1) for record in own]
        style = {"marker": "o" if name == "mobilemamba" else "s", "markersize": 6, "linewidth": 1.8}
        axis.plot(*zip(*points, strict=True), color=colours[name], label=_NAMES.get(name, name), **style)
        lines.append((points, [short_label(record) for record in own], colours[name]))
    slowest, fastest = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if fastest > 5 * slowest else MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.figure.canvas.draw()  # fixes the scales, by which labels are kept apart
    drawn = [dot for points, _, _ in lines for dot in _dots(axis.transData.transform(points))]
    for points, labels, colour in lines:
        for point, label in zip(points, labels, strict=True):
            x, y = _free_place(axis.transData.transform(point), len(label), drawn)
            anchor = {"ha": "left" if x > 0 else "right" if x < 0 else "center", "va": "center"}
            axis.annotate(label, point, (x, y), textcoords="offset points", fontsize=8.5, color=colour, **anchor)


def _dots(corners: Any) -> list[tuple[float, float]]:
    """Pixels along a line, close enough that no label fits between two."""
    dots = [tuple(corners[0])]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 5))
        dots += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(1, steps + 1)]
    return dots


def _free_place(point: Any, letters: int, drawn: list[tuple[float, float]]) -> tuple[int, int]:
    """Where a label covers least of what is drawn, as points from its point; what it covers is then drawn as well."""
    pixels = DPI / 72
    width, height = 5.4 * letters * pixels, 11 * pixels

    def box(place: tuple[int, int]) -> tuple[float, float, float, float]:
        x, y = point[0] + place[0] * pixels, point[1] + place[1] * pixels
        left = x if place[0] > 0 else x - width if place[0] < 0 else x - width / 2
        return left, y - height / 2, left + width, y + height / 2

    def covered(place: tuple[int, int]) -> int:
        left, low, right, high = box(place)
        return sum(left < x < right and low < y < high for x, y in drawn)

    best = min(_PLACES, key=covered)
    left, low, right, high = box(best)
    drawn += [(left + (right - left) * i / 12, low + (high - low) * j / 3) for i in range(13) for j in range(4)]
    return best


def short_label(record: Record) -> str:
    """A network's size in its family, in capitals, with the picture's side."""
    size = record.model.removeprefix(f"{family(record.model)}_")
    return f"{size.upper()} ({record.size})"
