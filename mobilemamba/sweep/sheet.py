"""A table of text cells with notes, and its output formats."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group

from mobilemamba.screen import fit_table
from mobilemamba.text import csv_of

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
#: Characters that Markdown would interpret: as emphasis, links, tags, entities or emoji.
_MARKDOWN = re.compile(
    r"[\\`*|]|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|~(?=~)|:(?=[\w+-]+:)|\[(?=[^\]]*\][(\[])"
)


@dataclass
class Sheet:
    """Content of a table, as text.

    Attributes:
        title: Title above the table.
        header: One name per column.
        lines: Rows of cells, as long as the header.
        notes: Notes below the table, one sentence each.
        numeric: Columns that are aligned to the right.
        spare: Columns that a narrow screen may leave out, in this order; files have all of them.
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    notes: list[str] = field(default_factory=list)
    numeric: set[int] = field(default_factory=set)
    spare: list[int] = field(default_factory=list)

    def to_csv(self) -> str:
        """Formats header and lines as CSV, without the notes."""
        return csv_text([dict(zip(self.header, line, strict=True)) for line in self.lines])

    def to_rich(self, width: int) -> Group:
        """Formats the table for a terminal of ``width`` characters."""
        return fit_table(
            width,
            self.header,
            self.lines,
            title=self.title,
            notes=self.notes,
            numeric=list(self.numeric),
            spare=self.spare,
        )

    def to_markdown(self, heading: str = "#") -> str:
        """Formats a heading, the table, and the notes as a list, in Markdown."""
        rule = ["---:" if column in self.numeric else "---" for column in range(len(self.header))]
        header, *cells = [[markdown_text(text) for text in line] for line in [self.header, *self.lines]]
        body = "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *cells])
        bullets = "\n".join(f"- {markdown_text(note)}" for note in self.notes)
        return f"{heading} {markdown_text(self.title)}\n\n{body}\n" + (f"\n{bullets}\n" if bullets else "")

    def to_latex(self) -> str:
        """Formats a LaTeX ``table`` environment with rules of the booktabs package, and the notes in small print."""
        columns = "".join("r" if column in self.numeric else "l" for column in range(len(self.header)))
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [f"{' & '.join(map(_latex, self.header))} \\\\", r"\midrule"]
        lines += [f"{' & '.join(map(_latex, line))} \\\\" for line in self.lines]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par{{\footnotesize {_latex(note)}}}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def to_html(self) -> str:
        """Formats a heading, a ``table``, and the notes as a list, in HTML."""
        kinds = [' class="number"' if column in self.numeric else "" for column in range(len(self.header))]

        def row(tag: str, cells: list[str]) -> str:
            inner = (f"<{tag}{kind}>{html.escape(text)}</{tag}>" for kind, text in zip(kinds, cells, strict=True))
            return f"<tr>{''.join(inner)}</tr>"

        body = "\n".join(row("td", line) for line in self.lines)
        notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = f"<table>\n<thead>{row('th', self.header)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        return f"<h2>{html.escape(self.title)}</h2>\n{table}\n<ul>\n{notes}\n</ul>\n"


def cell(value: Any, digits: int | None = None) -> str:
    """Formats a value for a table; blank if it is unknown."""
    if value is None or value != value:  # NaN, e.g. the score of a class that does not occur
        return ""
    if digits is not None and isinstance(value, int | float):
        return f"{value:,.{digits}f}"
    if isinstance(value, list | tuple):
        return ", ".join(f"({cell(item)})" if isinstance(item, list | tuple) else cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items() if item is not None)
    return value if isinstance(value, str) else json.dumps(value)


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Formats rows of values as CSV, each value as a :func:`cell`."""
    return csv_of([{key: cell(value) for key, value in row.items()} for row in rows])


def markdown_text(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is, on one line."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", text.replace("\n", " "))


def _latex(text: str) -> str:
    plain = re.sub(r"[\\~^±|<>&%$#_{}]", lambda found: _LATEX[found[0]], text.replace("\n", " "))
    return re.sub(r"^\[", "{[}", plain)  # after the \\ of the line before, [ would begin an option
