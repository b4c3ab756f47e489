"""Figures of receptive fields: networks in rows, their stages in columns, as in Fig. A1 of the paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mobilemamba.analysis.erf.fields import ReceptiveField
from mobilemamba.analysis.erf.numbers import THRESHOLDS, contribution_sides
from mobilemamba.analysis.figures import legible
from mobilemamba.errors import ConfigError, check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Display of fractions of the maximum: logarithmically over three decades, unchanged, or by their fifth root (VMamba).
Display = Literal["log", "raw", "power"]
#: Normalisation: each map by its own maximum; or each by its sum, and then all by their common maximum.
Scale = Literal["own", "common"]

_MOST_COLUMNS = 8  # further panels continue on the next line
_PANEL = 1.9  # width in inches
_LEAST_WIDTH = 3.8  # smallest width of a line of panels in inches, for names and caption
_SHOWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log": lambda x: np.log10(1 + 999 * x) / 3,
    "raw": lambda x: x,
    "power": lambda x: x**0.2,
}
_HOW = {"log": "log10(1+999x)/3 of ", "raw": "", "power": "the fifth root of "}
_RULES = {"relu": "ReLU of feature and gradient", "absolute": "absolute values", "signed": "signed sums"}
_LINES = ("#67000d", "#cb181d", "#fb6a4a", "#3f4b7f")
#: Description of random weights, which is emphasised in the figure.
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Row:
    """A row of the figure.

    Attributes:
        name: Name of the network, or whatever else distinguishes the rows.
        weights: Origin of its weights; ``UNTRAINED`` for random ones.
        fields: Its receptive fields.
    """

    name: str
    weights: str
    fields: Sequence[ReceptiveField]


def figure_size(rows: Sequence[Row]) -> tuple[float, float]:
    """Returns a suitable width and height in inches for :func:`draw_receptive_fields` with these rows."""
    width, lines = _width(rows), sum(map(len, _lines(rows)))
    tallest = max((field.size[0] / field.size[1] for row in rows for field in row.fields), default=1.0)
    return width + 0.9, (tallest * width / _columns(rows) + 0.25) * lines + 0.25 * len(rows) + 0.9


def draw_receptive_fields(
    figure: Figure, rows: Sequence[Row], display: Display = "log", scale: Scale = "own", data: str = ""
) -> None:
    """Draws maps in colours from 0 to 1, with the squares of their contribution ratios about the true centres.

    Args:
        figure: Empty figure of :func:`figure_size`, with constrained layout.
        rows: The networks.
        display: See ``Display``.
        scale: See ``Scale``.
        data: Name of the data set, for the caption.

    Raises:
        ConfigError: If there is nothing to draw, or ``display`` or ``scale`` is unknown.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # takes half a second, so imported only for drawing

    for name, value, kinds in (("display", display, get_args(Display)), ("scale", scale, get_args(Scale))):
        check_choice(name, value, kinds)
    if not any(row.fields for row in rows):
        raise ConfigError("there are no receptive fields to draw")
    parts = zip(rows, _lines(rows), strict=True)
    # Only the first line of a row has the row's name above it.
    lines = [(None if number else row, line) for row, own in parts for number, line in enumerate(own)]
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.06, h_pad=0.05, hspace=0.0, wspace=0.0)
    axes = figure.subplots(len(lines), _columns(rows), squeeze=False)
    shares = [_share(field, scale) for row in rows for field in row.fields]
    top = max(np.abs(share).max() for share in shares)
    signed = any(share.min() < 0 for share in shares)
    options = {"cmap": "PiYG" if signed else "YlGn", "vmin": -1 if signed else 0, "vmax": 1, "interpolation": "nearest"}
    for (row, fields), axes_of_line in zip(lines, axes, strict=True):
        for axis, field in zip(axes_of_line, fields, strict=False):
            share = _share(field, scale) / (top or 1)
            image = axis.imshow(np.sign(share) * _SHOWN[display](np.abs(share)), **options)
            _frame(axis, field, named=row is not None)
        for axis in axes_of_line[len(fields) :]:
            axis.axis("off")
        if row is not None:
            _name(axes_of_line[0], row, 72 * _width(rows) - 10)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=30, shrink=min(1.0, 1.4 / len(lines) + 0.3), pad=0.015)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)
    _explain(figure, rows, display, scale, data)


def count_pictures(fields: Sequence[ReceptiveField]) -> str:
    """Describes how many pictures the maps are averaged over."""
    numbers = " or ".join(dict.fromkeys(str(field.pictures) for field in fields))
    return f"{numbers} picture{'s' * (numbers != '1')}"


def _columns(rows: Sequence[Row]) -> int:
    return min(_MOST_COLUMNS, max(len(row.fields) for row in rows))


def _width(rows: Sequence[Row]) -> float:
    """Returns the width of a line of panels in inches."""
    return max(_LEAST_WIDTH, _PANEL * _columns(rows))


def _lines(rows: Sequence[Row]) -> list[list[Sequence[ReceptiveField]]]:
    """Splits the fields of each row into lines of panels."""
    columns = _columns(rows)
    return [[row.fields[i : i + columns] for i in range(0, len(row.fields), columns)] for row in rows]


def _share(field: ReceptiveField, scale: Scale) -> np.ndarray:
    size = np.abs(field.map).max() if scale == "own" else np.abs(field.map).sum()
    return field.map / (size or 1)


def _frame(axis: Any, field: ReceptiveField, *, named: bool) -> None:
    """Draws title and squares of a panel; with ``named``, leaves space for the network's name above the title."""
    stride = " x ".join(f"{value:g}" for value in dict.fromkeys(field.stride))
    room = "\n\n" if named else ""
    axis.set_title(f"{room}{_end(field.tap, 26 - len(stride))}  1/{stride}", loc="left", fontsize=8, pad=3)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(linewidth=0.5, color="0.6")
    y, x = field.centre
    for side, colour in zip(contribution_sides(field.map, field.centre), _LINES, strict=True):
        if math.isfinite(side):
            corner = (x - side / 2, y - side / 2)
            thin = min(0.9, 0.2 + 10 * side / max(field.size))  # thinner around a small field, to keep it visible
            axis.add_patch(_rectangle(corner, side, edgecolor=colour, linewidth=thin))


def _end(text: str, letters: float) -> str:
    """Returns a text, or only its end if it has too many letters."""
    return text if len(text) <= letters else f"...{text[len(text) - max(1, int(letters) - 3) :]}"


def _rectangle(corner: tuple[float, float], side: float, **options: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, side, side, fill=False, **options)


def _name(axis: Any, row: Row, width: float) -> None:
    """Writes the network's name and weights above its first panel, within a width in points."""
    shown = _end(legible(row.name), (width - 100) / 7.2)
    above = {"va": "bottom", "annotation_clip": False}
    name = axis.annotate(
        shown, (0, 1), (0, 14), "axes fraction", "offset points", fontsize=10, fontweight="bold", **above
    )
    untrained = row.weights == UNTRAINED
    weights = axis.annotate(
        row.weights.upper() if untrained else _end(legible(row.weights), (width - 7.2 * len(shown)) / 5.6),
        (1, 0),
        (6, 0),
        name,
        "offset points",
        fontsize=9,
        fontweight="bold" if untrained else "normal",
        color="#b2182b" if untrained else "0.3",
        **above,
    )
    for text in (name, weights):
        text.set_in_layout(False)


def _explain(figure: Figure, rows: Sequence[Row], display: Display, scale: Scale, data: str) -> None:
    fields = [field for row in rows for field in row.fields]
    sizes = " and ".join(dict.fromkeys(" x ".join(map(str, field.size)) for field in fields))
    of = "each map's maximum" if scale == "own" else "the largest density of all maps"
    pictures = count_pictures(fields) + (f" of {legible(data)}" if data else "")
    text = (
        f"Mean over {pictures}, {sizes} px; {_RULES[fields[0].rule]}. "
        f"Colours: {_HOW[display]}{'x = ' if display == 'log' else ''}shares of {of}. "
        "Squares about the cell's centre that hold these shares of the map:"
    )
    figure.legend(
        [_rectangle((0, 0), 1, edgecolor=colour) for colour in _LINES],
        [f"{100 * threshold:g} %" for threshold in THRESHOLDS],
        loc="outside lower left",
        ncols=len(THRESHOLDS),
        frameon=False,
        fontsize=8,
        title=textwrap.fill(text, int(16 * figure.get_figwidth() - 4)),
        title_fontsize=8,
        alignment="left",
        handlelength=1.0,
        handleheight=1.0,
    )
