"""Figures as PNG files."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def png_figure(path: Path, **options: Any) -> Iterator[Figure]:
    """A matplotlib figure to draw on, which then replaces ``path`` atomically; no text in it is taken for formulas.

    Args:
        path: PNG file.
        options: Of the figure, e.g. ``figsize``.

    Raises:
        OSError: If the file cannot be written.
    """
    import matplotlib as mpl  # half a second, which only those pay who draw
    from matplotlib.figure import Figure

    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in a script that the font lacks
        figure = Figure(layout="constrained", dpi=120, **options)
        yield figure
        try:
            figure.savefig(temporary, format="png")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
