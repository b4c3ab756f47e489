"""Plot of published accuracy over measured throughput, with a line through each family of networks."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mobilemamba.analysis.benchmark.comparison import Conditions, grouped
from mobilemamba.analysis.benchmark.published import family
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.figures import label_points, png_figure
from mobilemamba.errors import ConfigError

PANEL = (6.4, 4.6)  # inches
DPI = 120
#: Names in the papers; the two families called EfficientViT are distinguished by the first letter of their sizes.
_NAMES = {
    "mobilemamba": "MobileMamba",
    "efficientvit": "EfficientViT-M",
    "efficientvit_b": "EfficientViT-B",
    "emo": "EMO",
    "cpubone": "CPUBone",
    "lcnet": "LCNet",
    "levit": "LeViT",
    "mobilenetv3": "MobileNetV3",
    "mobilenetv4": "MobileNetV4",
    "repvit": "RepViT",
    "shvit": "SHViT",
    "starnet": "StarNet",
}
_COLOURS = {"mobilemamba": "#c1272d", "efficientvit": "#1f5fa8"}
_OTHERS = ("#5b8c2a", "#8a5aa8", "#b07a1e", "#3f8f8f", "#7a7a7a", "#d0609a", "#1a1a1a", "#6b4226")


def plot(records: list[Record], path: Path) -> None:
    """Plots a panel for each set of conditions (batch, dtype, mode, device); replaces the file atomically.

    Args:
        records: Records, of which those without an accuracy or results are left out.
        path: PNG file.

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
    side = Counter(record.size for group in groups.values() for record in group).most_common(1)[0][0]
    with png_figure(path, figsize=(PANEL[0] * columns, PANEL[1] * rows), dpi=DPI) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        families = list(dict.fromkeys(family(record.model) for group in groups.values() for record in group))
        others = [name for name in families if name not in _COLOURS]
        looks = {name: (colour, "o" if name == "mobilemamba" else "s") for name, colour in _COLOURS.items()}
        for index, name in enumerate(others):
            looks[name] = _OTHERS[index % len(_OTHERS)], "sD^v"[index // len(_OTHERS) % 4]
        for axis, (shared, group) in zip(axes.flat, groups.items(), strict=False):
            _panel(axis, shared, group, looks)
        for axis in list(axes.flat)[len(groups) :]:
            axis.remove()
        lines = {str(line.get_label()): line for axis in figure.axes for line in axis.lines}
        title = f"size in its family; pictures of {side} px where no other side is given"
        look: dict[str, Any] = {"frameon": False, "ncols": min(len(lines), 1 + 2 * columns), "title": title}
        figure.legend(list(lines.values()), list(lines), loc="outside lower center", **look)
        for axis, group in zip(figure.axes, groups.values(), strict=True):  # after everything else that takes space
            names = [(*_point(record), short_label(record, side), looks[family(record.model)][0]) for record in group]
            corners: list[Any] = [line.get_xydata() for line in axis.lines]
            label_points(axis, names, corners)


def _panel(axis: Any, shared: Conditions, group: list[Record], looks: dict[str, tuple[str, str]]) -> None:
    device, dtype, mode, train, batch = shared
    place = "" if device == "cpu" else f", {device}"
    along = f"{'training ' if train else ''}throughput (img/s, log scale), {group[0].processor}"
    axis.set(
        xscale="log",
        xlabel=textwrap.fill(along, 70),
        ylabel="published ImageNet-1k top-1 (%)",
        title=f"batch {batch}, {dtype}, {mode}{', training' if train else ''}{place}",
    )
    axis.margins(0.12, 0.12)
    axis.grid(alpha=0.3)
    for name in dict.fromkeys(family(record.model) for record in group):
        own = sorted((r for r in group if family(r.model) == name), key=lambda r: (r.paper_top1, r.images_per_second))
        colour, marker = looks[name]
        ours = name == "mobilemamba"
        style = {"linewidth": 2.0 if ours else 1.2, "zorder": 3 if ours else 2, "markersize": 6 if ours else 5}
        points = zip(*map(_point, own), strict=True)
        axis.plot(*points, color=colour, marker=marker, label=_NAMES.get(name, name), **style)
    slowest, fastest = axis.get_xlim()
    subs = (1, 2, 5) if fastest < 100 * slowest else (1, 3)
    axis.xaxis.set_major_locator(LogLocator(subs=subs) if fastest > 5 * slowest else MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _point(record: Record) -> tuple[Any, Any]:
    return record.images_per_second, record.paper_top1


def short_label(record: Record, side: int) -> str:
    """Returns a network's size in its family, in upper case, with its picture size if that differs from ``side``."""
    model = record.model.partition(".")[0].removesuffix("_bfrobust").removesuffix("_100")
    size = re.sub(r"(\d)_(?=\d)", r"\1.", model.partition("_")[2]).replace("_", " ").upper()
    label = size or _NAMES.get(model, model)
    return label if record.size == side else f"{label} ({record.size})"
