"""What ``predict`` found: as a CSV or JSON file that is whole at any moment, or as a table on the screen."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mobilemamba.errors import ConfigError
from mobilemamba.files import check_writable, write_text_atomic
from mobilemamba.messages import writable
from mobilemamba.models import ModelCard
from mobilemamba.screen import on_screen

#: One picture's answer: ``picture`` and, likeliest first, ``classes``; or ``error``.
Answer = dict[str, Any]

_SECONDS = 5.0  # of work that a kill may lose
_UNLIMITED = 10_000  # columns


class AnswerFile:
    """A .csv or .json file, written as a whole now and then: a process that is killed leaves what it had by then.

    Args:
        path: The file.

    Raises:
        ConfigError: If it could not be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix.lower() not in (".csv", ".json"):
            raise ConfigError(f"--output {path}: expected a name that ends in .csv or .json")
        check_writable(path, "--output")
        self._due = time.monotonic() + _SECONDS

    def keep(self, answers: list[Answer]) -> None:
        """Writes the answers so far, if the last time is long ago."""
        if time.monotonic() >= self._due:
            self.write(answers)

    def write(self, answers: list[Answer]) -> None:
        """Writes the answers so far.

        Raises:
            OSError: If it cannot be written.
        """
        began = time.monotonic()
        as_json = self.path.suffix.lower() == ".json"
        write_text_atomic(self.path, json.dumps(answers, indent=2) + "\n" if as_json else to_csv(answers))
        took = time.monotonic() - began
        self._due = began + took + max(_SECONDS, 20 * took)  # a long list takes little of the time


def to_csv(answers: list[Answer]) -> str:
    """A line for each picture and class: picture, rank (from 1), index, class, probability, error.

    Names are as they are, but for carriage returns, which readers take for the end of a line, and bytes that are not
    UTF-8: these stand as escapes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "rank", "index", "class", "probability", "error"])
    for found in answers:
        for rank, entry in enumerate(found.get("classes", []), start=1):
            writer.writerow([found["picture"], rank, entry["index"], entry["name"], entry["probability"], ""])
        if "error" in found:
            writer.writerow([found["picture"], "", "", "", "", found["error"]])
    return writable(text.getvalue())


def print_table(answers: list[Answer], card: ModelCard) -> None:
    """Prints the classes of each picture; a reader of the output that has left, ``head`` say, is no error."""
    # Names come from outside: nothing in them is markup. Where no terminal folds them, they stay whole.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNLIMITED
    with console.capture() as captured:
        console.print(_table(answers, card))
    try:
        sys.stdout.write(captured.get())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end


def _table(answers: list[Answer], card: ModelCard) -> Table:
    height, width = card.preprocessing.img_size
    table = Table(title=f"{on_screen(card.model)}, {height}x{width} px", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for found in answers:
        classes = found.get("classes", [{"name": "unreadable", "probability": None}])
        for rank, entry in enumerate(classes):
            share = "" if entry["probability"] is None else f"{entry['probability']:.1%}"
            picture = on_screen(found["picture"]) if rank == 0 else ""
            table.add_row(picture, on_screen(entry["name"]), share, end_section=rank == len(classes) - 1)
    return table
