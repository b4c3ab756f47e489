"""Figures as PNG files, and as PDF."""

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

from mobilemamba.files import write_atomic
from mobilemamba.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_OWN_FONT = "DejaVu Sans"
#: Where a label may stand: right or left of its point, and how many points above.
_PLACES = [(side, height) for step in range(8) for height in (11 * step, -11 * step) for side in (1, -1)]
_GAP = 7  # points between a point and its label
#: Left, bottom, right and top in pixels.
_Box = tuple[float, float, float, float]


def legible(text: object) -> str:
    """A text from outside in one line and in characters that some font here has; the others stand as escapes."""
    escaped = {c: c.encode("unicode_escape").decode() for c in printable(text) if _font_with(c) is None}
    return "".join(escaped.get(character, character) for character in printable(text))


@functools.cache
def _font_with(character: str) -> str | None:
    """The family of an installed font that has a character, matplotlib's own if that has it."""
    from matplotlib.font_manager import fontManager

    fonts = sorted(fontManager.ttflist, key=lambda font: (font.name != _OWN_FONT, font.style != "normal", font.name))
    # The last resort has a box for everything.
    named = (font for font in fonts if not font.name.startswith("Last Resort"))
    return next((font.name for font in named if ord(character) in _characters(font.fname)), None)


@functools.cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):  # gone by now, or of coloured bitmaps
        return frozenset()


@contextmanager
def png_figure(path: Path, texts: Iterable[str] = (), pdf: Path | None = None, **options: Any) -> Iterator[Figure]:
    """A matplotlib figure to draw on, which then replaces ``path`` atomically; no text in it is taken for formulas.

    Args:
        path: PNG file.
        texts: What is written on it, in whatever script; :func:`legible` makes such texts.
        pdf: A PDF file of the same.
        options: Of the figure, e.g. ``figsize``.

    Raises:
        OSError: If the file cannot be written.
    """
    import matplotlib as mpl  # half a second, which only those pay who draw
    from matplotlib.figure import Figure

    families = dict.fromkeys([_OWN_FONT, *filter(None, map(_font_with, dict.fromkeys("".join(texts))))])
    with (
        mpl.rc_context({"text.parse_math": False, "font.family": list(families)}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # in texts that were not named
        figure = Figure(layout="constrained", **{"dpi": 120, **options})
        yield figure
        contents = {path: io.BytesIO()} | ({} if pdf is None else {pdf: io.BytesIO()})
        for file, content in contents.items():
            # Without the date, so that the same figure is the same file.
            options_of_pdf = {"format": "pdf", "metadata": {"CreationDate": None}}
            figure.savefig(content, **(options_of_pdf if file is pdf else {"format": "png"}))
    for file, content in contents.items():
        write_atomic(file, content.getbuffer())


def label_points(
    axis: Any, points: Sequence[tuple[float, float, str, str]], lines: Iterable[Sequence[tuple[float, float]]] = ()
) -> None:
    """Writes names beside points, each where it covers least of the others and of lines; fixes the axis's scales.

    Args:
        axis: All else is drawn on it.
        points: x, y, name and colour of each.
        lines: The corners of each.
    """
    axis.figure.canvas.draw()
    pixels = axis.figure.dpi / 72
    taken: list[_Box] = [(x, y, x, y) for line in lines for x, y in _dots(axis.transData.transform(line))]
    for x, y, name, colour in sorted(points, key=lambda point: -point[1]):
        centre, size = axis.transData.transform((x, y)), (4.8 * len(name) * pixels, 10.0 * pixels)
        boxes = {place: _box(centre, place, size, pixels) for place in _PLACES}
        covered = {place: sum(_overlap(box, other) for other in taken) for place, box in boxes.items()}
        side, height = min(covered, key=covered.__getitem__)
        taken.append(boxes[side, height])
        axis.annotate(
            name,
            (x, y),
            xytext=(side * _GAP, height),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour} if height else None,
        )


def _dots(corners: Any) -> Iterator[tuple[float, float]]:
    """Pixels along a line, close enough that no label fits between two."""
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 5))
        yield from ((x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1))


def _box(centre: Any, place: tuple[int, int], size: tuple[float, float], pixels: float) -> _Box:
    side, height = place
    left = centre[0] + side * _GAP * pixels - (size[0] if side < 0 else 0)
    middle = centre[1] + height * pixels
    return left, middle - size[1] / 2, left + size[0], middle + size[1] / 2


def _overlap(box: _Box, other: _Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
