"""Writing of figures as PNG and PDF files, and labelling of points."""

from __future__ import annotations

import functools
import io
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilemamba.files import write_atomic
from mobilemamba.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_OWN_FONT = "DejaVu Sans"
_LABEL = 8  # size of labels in points
#: Possible offsets of a label from its point, in points to the right and upwards.
_PLACES = np.array(
    [
        (side * (7 + 10 * out), sign * 11 * up)
        for up in range(8)
        for out in range(4 if up else 1)
        for sign in ((1, -1) if up else (1,))
        for side in (1, -1)
    ],
    dtype=float,
)
#: Costs of a label that covers another label, a point or a piece of a line, leaves the axis, or is 10 points away.
_COSTS = {"label": 20.0, "point": 6.0, "line": 0.6, "outside": 20.0, "away": 1.0}
_ROUNDS = 4  # rounds of improvement, in which each label may move


def legible(text: object) -> str:
    """Returns a text in one line, with characters that no installed font has replaced by escapes."""
    escaped = {c: c.encode("unicode_escape").decode() for c in printable(text) if _font_with(c) is None}
    return "".join(escaped.get(character, character) for character in printable(text))


@functools.cache
def _font_with(character: str) -> str | None:
    """Returns the family of an installed font that has a character, preferably matplotlib's own; None if none has."""
    from matplotlib.font_manager import fontManager

    fonts = sorted(fontManager.ttflist, key=lambda font: (font.name != _OWN_FONT, font.style != "normal", font.name))
    # The last resort font shows a box for every character.
    named = (font for font in fonts if not font.name.startswith("Last Resort"))
    return next((font.name for font in named if ord(character) in _characters(font.fname)), None)


@functools.cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):  # the file is gone, or has coloured bitmaps
        return frozenset()


@contextmanager
def png_figure(path: Path, texts: Iterable[str] = (), pdf: Path | None = None, **options: Any) -> Iterator[Figure]:
    """Context manager of a figure that is written to ``path`` atomically; its texts are not parsed as formulas.

    Args:
        path: PNG file to write.
        texts: Texts in the figure, in any script, made :func:`legible`; fonts are chosen for them.
        pdf: PDF file to write in addition.
        options: Arguments of the figure, e.g. ``figsize``.

    Raises:
        OSError: If the file cannot be written.
    """
    import matplotlib as mpl  # takes half a second, so imported only for drawing
    from matplotlib.figure import Figure

    families = dict.fromkeys([_OWN_FONT, *filter(None, map(_font_with, dict.fromkeys("".join(texts))))])
    with (
        mpl.rc_context({"text.parse_math": False, "font.family": list(families)}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # in texts that are not in ``texts``
        figure = Figure(layout="constrained", **{"dpi": 120, **options})
        yield figure
        contents = {path: io.BytesIO()} | ({} if pdf is None else {pdf: io.BytesIO()})
        for file, content in contents.items():
            # Without the date, so that equal figures are equal files.
            options_of_pdf = {"format": "pdf", "metadata": {"CreationDate": None}}
            figure.savefig(content, **(options_of_pdf if file is pdf else {"format": "png"}))
    for file, content in contents.items():
        write_atomic(file, content.getbuffer())


def label_points(
    axis: Any, points: Sequence[tuple[float, float, str, str]], lines: Iterable[Sequence[tuple[float, float]]] = ()
) -> None:
    """Writes names beside points, where they cover as little as possible of other names, points and lines.

    Args:
        axis: Axis whose figure is otherwise complete, so that its position and scales are final.
        points: x, y, name and colour of each point.
        lines: Vertices of each line.
    """
    from matplotlib.patheffects import withStroke

    if not points:
        return
    axis.figure.draw_without_rendering()
    pixels = axis.figure.dpi / 72
    centres = axis.transData.transform([point[:2] for point in points])
    of_lines = [dot for line in lines for dot in _dots(axis.transData.transform(line))]
    dots = np.array(of_lines).reshape(-1, 2)
    boxes = np.stack([_boxes(x, _size(axis, point[2]), pixels) for x, point in zip(centres, points, strict=True)])
    edge = axis.bbox.extents + np.array([2, 2, -2, -2]) * pixels
    outside = (boxes[..., :2] < edge[:2]).any(-1) | (boxes[..., 2:] > edge[2:]).any(-1)
    costs = _COSTS["point"] * _covered(boxes, np.hstack([centres - 4 * pixels, centres + 4 * pixels]))
    costs += _COSTS["line"] * _covered(boxes, np.hstack([dots, dots]))
    costs += _COSTS["outside"] * outside + _COSTS["away"] * np.hypot(*_PLACES.T) / 10
    chosen = costs.argmin(1)
    for _ in range(_ROUNDS):
        for own in range(len(points)):
            taken = boxes[np.arange(len(points)), chosen]
            others = np.delete(taken, own, 0)
            chosen[own] = (costs[own] + _COSTS["label"] * _covered(boxes[own], others)).argmin()
    for (x, y, name, colour), (right, up) in zip(points, _PLACES[chosen], strict=True):
        axis.annotate(
            name,
            (x, y),
            xytext=(right, up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="center",
            fontsize=_LABEL,
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour} if up else None,
        ).set_in_layout(False)


def _dots(corners: Any) -> Iterator[Any]:
    """Yields points along a line in pixels, close enough that no label fits between two."""
    for start, end in itertools.pairwise(corners):
        yield from np.linspace(start, end, max(1, int(math.dist(start, end) / 5)) + 1)


def _size(axis: Any, name: str) -> tuple[float, float]:
    """Returns width and height of a label in pixels."""
    text = axis.text(0, 0, name, fontsize=_LABEL)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height


def _boxes(centre: Any, size: tuple[float, float], pixels: float) -> Any:
    """Returns left, bottom, right and top of a label in pixels, for each of its possible offsets."""
    (width, height), (x, y) = size, (centre + _PLACES * pixels).T
    left = np.where(_PLACES[:, 0] > 0, x, x - width)
    return np.stack([left, y - height / 2, left + width, y + height / 2], axis=1)


def _covered(boxes: Any, others: Any) -> Any:
    """Counts how many of the others each box overlaps."""
    boxes = boxes[..., None, :]
    return ((boxes[..., :2] < others[:, 2:]) & (others[:, :2] < boxes[..., 2:])).all(-1).sum(-1)
