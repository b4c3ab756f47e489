"""Figures as PNG files, and as PDF."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilemamba.files import write_atomic
from mobilemamba.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_OWN_FONT = "DejaVu Sans"


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
