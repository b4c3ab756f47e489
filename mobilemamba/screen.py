"""Printing: text from outside without its markup and control characters, and tables that fit a narrow screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mobilemamba.text import printable

#: Width in characters for a file or a pipe, where lines may be long.
_UNLIMITED = 10_000
#: A longer word, such as a path, is broken rather than leaving out another column.
_LONGEST_WORD = 20


def make_console() -> Console:
    """Creates a console as wide as the terminal or ``COLUMNS``; of unlimited width for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _UNLIMITED)


def on_screen(text: object) -> str:
    """Returns a text in one line, with characters that standard output cannot encode replaced by escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, console: Console | None = None) -> None:
    """Prints a line without interpretation: names and reasons may look like markup or ``:smile:``."""
    text = on_screen(text)
    if console is None:
        sys.stdout.write(f"{text}\n")  # appears above a live display, into which a new console would write
        sys.stdout.flush()
    else:
        console.print(Text(text), soft_wrap=True)


def fit_table(
    width: int,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    numeric: Sequence[int] = (),
    spare: Sequence[int] = (),
    styles: Sequence[str | None] = (),
    sections: Sequence[int] = (),
) -> Group:
    """Returns a table that is no wider than the screen, and names the columns that it had to leave out.

    Cells are wrapped over several lines. If a column would become narrower than its words, columns of ``spare`` are
    left out, those with a single value first, and listed below the table.

    Args:
        width: Width of the screen in characters.
        header: One name per column.
        lines: Rows of cells, as long as the header; cells are not interpreted.
        title: Title above the table.
        notes: Notes below the table, one paragraph each.
        numeric: Columns that are aligned to the right.
        spare: Columns that may be left out, in this order.
        styles: Style of each row, by rich's names.
        sections: Rows after which a rule is drawn.
    """
    header, lines = [*map(on_screen, header)], [[*map(on_screen, line)] for line in lines]
    columns = [[name, *cells] for name, *cells in zip(header, *lines, strict=True)]
    least = [min(max(map(_longest_word, column)), _LONGEST_WORD) for column in columns]
    shown = list(range(len(header)))
    for column in sorted(spare, key=lambda column: len(set(columns[column][1:])) > 1):  # stable
        if sum(least[index] for index in shown) + 2 * len(shown) <= width:
            break
        shown.remove(column)
    ruled = sum(least[index] for index in shown) + 3 * len(shown) + 1 <= width
    room = width - (3 * len(shown) + 1 if ruled else 2 * len(shown))
    widths = _share([max(map(cell_len, columns[index])) for index in shown], [least[index] for index in shown], room)
    look: dict[str, Any] = {} if ruled else {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False}
    table = Table(show_edge=ruled, **look)
    for index, size in zip(shown, widths, strict=True):
        justify: Literal["right", "left"] = "right" if index in numeric else "left"
        table.add_column(Text(header[index]), justify=justify, width=size, overflow="fold")
    for number, line in enumerate(lines):
        style = styles[number] if number < len(styles) else None
        table.add_row(*(Text(line[index]) for index in shown), style=style, end_section=number in sections)
    below = [Text(on_screen(note), style="dim") for note in notes]
    if missing := [index for index in range(len(header)) if index not in shown and any(columns[index][1:])]:
        single = {index: f" {lines[0][index]} in all" for index in missing if len(set(columns[index][1:])) == 1}
        named = ", ".join(f"{header[index]}{single.get(index, '')}" for index in missing)
        below.append(Text(f"not shown on {width} columns: {named}", style="dim"))
    return Group(*([Text(on_screen(title), style="italic")] if title else []), table, *below)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _share(wanted: list[int], least: list[int], room: int) -> list[int]:
    """Returns column widths that add up to at most ``room``: enough for the longest words, then the remaining space."""
    widths = [max(1, size) for size in least]
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    for index, want in enumerate(wanted):
        widths[index] += max(0, min(want - widths[index], room - sum(widths)))
    return widths
