"""Plots of the results of :mod:`~mobilemamba.analysis.inside`; each function draws on a given figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mobilemamba.analysis.inside import BANDS, BranchShares, ScanAttention
from mobilemamba.ops.scan_order import scan_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Names of the directions of ``scan_order``.
_DIRECTIONS = {
    1: ("along rows",),
    2: ("along rows", "along rows, backwards"),
    4: ("along rows", "along columns", "along rows, backwards", "along columns, backwards"),
}
_BRANCHES = {
    "mixer": ("global mixer", "#3b5b92"),
    "wavelet": ("wavelet", "#63a6a0"),
    "local": ("local", "#e3a857"),
    "identity": ("identity", "#b8b8b8"),
}
_WEAKEST = 1e-3  # smallest weight with a visible colour, approximately, relative to the largest


def draw_scan_attention(figure: Figure, attention: ScanAttention, picture: Tensor) -> None:
    """Draws the picture with the position marked, then the weights over it: of all directions, and of each.

    Colours have a logarithmic scale; positions that a direction has not visited yet are not coloured.

    Args:
        figure: Figure to draw on, about 3 inches per panel: 2 for one direction, 4 for two and 6 for four.
        attention: Attention at one position.
        picture: The network's input (C, H, W), normalised or not.
    """
    maps = {"all directions" if len(attention.skip) > 1 else _DIRECTIONS[1][0]: attention.summed}
    if len(attention.skip) > 1:
        maps |= dict(zip(_DIRECTIONS[len(attention.skip)], attention.by_direction, strict=True))
    columns = 3 if len(maps) == 5 else len(maps) + 1
    axes = [*figure.subplots((len(maps) + 1) // columns, columns, squeeze=False).flat]
    shown, grey = _to_show(picture), _to_show(picture.mean(0, keepdim=True))
    # Cells are centred at multiples of the stride, as each 3 x 3 convolution has stride 2 and padding 1.
    stride = 2 ** math.ceil(math.log2(shown.shape[0] / attention.summed.shape[0]))
    edges = [
        np.array([-0.5, *(stride * (np.arange(1, cells) - 0.5)), pixels - 0.5])
        for cells, pixels in zip(attention.summed.shape, shown.shape, strict=False)
    ]
    row, column = (stride * i for i in attention.position)
    axes[0].imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("picture, and the output's position", fontsize=9)
    norm, colours = _scale([m.numpy() for m in maps.values()])
    for axis, (name, weights) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(0.3 + 0.6 * grey, cmap="gray", vmin=0, vmax=1)
        seen = np.ma.masked_equal(weights.numpy(), 0)
        drawn = axis.pcolormesh(*reversed(edges), seen, cmap=colours, norm=norm, alpha=0.8, linewidth=0)
        axis.set_title(name, fontsize=9)
    for axis in axes:
        axis.plot(column, row, "o", ms=8, mfc="none", mec="black", mew=3, clip_on=False)
        axis.plot(column, row, "o", ms=8, mfc="none", mec="white", mew=1.3, clip_on=False)
        axis.set(xlim=(-0.5, shown.shape[1] - 0.5), ylim=(shown.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=axes, label="weight of the input", shrink=0.8, aspect=30, format="%.0e")
    bar.ax.tick_params(labelsize=7)


def _to_show(picture_CHW: Tensor) -> np.ndarray:
    """Returns a picture as (H, W, C), stretched to 0..1."""
    pixels: np.ndarray = picture_CHW.detach().cpu().float().permute(1, 2, 0).numpy()
    return (pixels - pixels.min()) / (np.ptp(pixels) or 1.0)


def _scale(maps: list[np.ndarray]) -> tuple[Any, str]:
    """Returns a logarithmic scale for weights, for both signs if they occur, and its colour map."""
    from matplotlib.colors import LogNorm, SymLogNorm

    most = max(float(np.abs(m).max()) for m in maps) or 1.0
    weakest = 10.0 ** math.floor(math.log10(_WEAKEST * most))
    if min(float(m.min()) for m in maps) < 0:
        return SymLogNorm(weakest, vmin=-most, vmax=most), "RdBu_r"
    return LogNorm(weakest, most, clip=True), "Reds"


def draw_branch_shares(figure: Figure, shares: Sequence[BranchShares]) -> None:
    """Draws a bar for each block, from the first at the top, divided into the shares of its branches.

    Args:
        figure: Figure to draw on, about an inch plus half an inch per block high.
        shares: Shares of the network's blocks.
    """
    axis = figure.subplots()
    left = np.zeros(len(shares))
    for branch, (label, colour) in _BRANCHES.items():
        values = np.array([getattr(entry, branch) for entry in shares])
        bars = axis.barh(
            range(len(shares)), values, left=left, color=colour, label=label, height=0.72, edgecolor="white"
        )
        texts = [f"{value:.0%}" if value >= 0.04 else "" for value in values]
        axis.bar_label(bars, texts, label_type="center", fontsize=8, color="white" if branch == "mixer" else "black")
        left += values
    for i in np.flatnonzero(np.isnan(left)).tolist():
        axis.text(0.5, i, "adds nothing yet: the projection's gain is 0", ha="center", va="center", fontsize=8)
    axis.set_yticks(range(len(shares)), [entry.block for entry in shares], fontsize=8)
    axis.set(xlim=(0, 1), xlabel="share of what the block's MRFFI module gives", ylim=(len(shares) - 0.5, -0.5))
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params("y", length=0)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def draw_sub_bands(figure: Figure, bands: Tensor, title: str = "") -> None:
    """Draws the four sub-bands as two by two tiles: the coarse one in grey, details on a common scale, red above 0.

    Args:
        figure: Square figure to draw on.
        bands: (4, h, w), sub-bands of one picture from :class:`~mobilemamba.analysis.inside.SubBands`.
        title: Title of the figure.
    """
    axes = [*figure.subplots(2, 2).flat]
    tiles = bands.detach().cpu().float().numpy()
    most = float(np.abs(tiles[1:]).max()) or 1.0
    for axis, tile, (name, shows) in zip(axes, tiles, BANDS.items(), strict=True):
        if name == "LL":
            axis.imshow(tile, cmap="gray")
        else:
            drawn = axis.imshow(tile, cmap="RdBu_r", vmin=-most, vmax=most)
        axis.set_title(f"{name}: {shows}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, label="detail")
    figure.suptitle(title, fontsize=10)


def draw_scan_order(figure: Figure, directions: int, size: tuple[int, int]) -> None:
    """Draws the path of each scan direction over a map, from dark to bright.

    Args:
        figure: Figure to draw on, about 3 inches per panel.
        directions: 1, 2 or 4.
        size: (H, W) of the map.

    Raises:
        ConfigError: If there is no such number of directions.
    """
    orders: Iterable[np.ndarray] = scan_order(directions, size).numpy()
    axes = [*figure.subplots(1, directions, squeeze=False).flat]
    for axis, order, name in zip(axes, orders, _DIRECTIONS[directions], strict=True):
        steps = np.empty(len(order))
        steps[order] = np.arange(len(order))
        axis.imshow(steps.reshape(size), cmap="viridis", alpha=0.6)
        rows, columns = np.divmod(order, size[1])
        way = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "color": "black"}
        axis.quiver(columns[:-1], rows[:-1], np.diff(columns), np.diff(rows), **way)
        axis.plot(columns[0], rows[0], "o", color="white", mec="black", ms=7)
        axis.set_title(name, fontsize=9)
        axis.set(xticks=[], yticks=[])
