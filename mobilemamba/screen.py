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

#: Of a file or a pipe, in characters: there a line may be as long as it likes.
_UNLIMITED = 10_000
#: A longer word, such as a path, is broken where another column would be left out for it.
_LONGEST_WORD = 20


def make_console() -> Console:
    """As wide as the terminal, or as ``COLUMNS`` says; without limit for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _UNLIMITED)


def on_screen(text: object) -> str:
    """A text from outside in one line and in the letters that standard output has; the others stand as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, console: Console | None = None) -> None:
    """Prints a line as it is: names and reasons are no markup, and what reads like ``:smile:`` is none."""
    text = on_screen(text)
    if console is None:
        sys.stdout.write(f"{text}\n")  # above a live display, where there is one: a new console would write into it
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
    """A table that is no wider than the screen and leaves nothing out unsaid.

    Cells are broken over several lines. Where a column would become narrower than its words, those of ``spare`` are
    left out, those with a single value first, and named below.

    Args:
        width: Of the screen, in characters.
        header: One name a column.
        lines: Cells, as many as the header has names; a line each, whatever is in them.
        title: Above it.
        notes: Below it, a paragraph each.
        numeric: Columns that are set to the right.
        spare: Columns that may be left out, in this order.
        styles: Of each line, by rich's names.
        sections: Lines after which a rule is drawn.
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
    """Widths of columns that together fill ``room`` at most: at first their longest words, then what is over."""
    widths = [max(1, size) for size in least]
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    for index, want in enumerate(wanted):
        widths[index] += max(0, min(want - widths[index], room - sum(widths)))
    return widths
