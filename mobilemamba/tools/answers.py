"""Output of ``predict``: a CSV or JSON file that is complete at any moment, drawings, or a table on the screen."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.table import Table
from rich.text import Text

from mobilemamba.errors import ConfigError
from mobilemamba.files import (
    check_writable,
    has_ending,
    make_folder,
    remove_unfinished,
    write_atomic,
    write_text_atomic,
)
from mobilemamba.models.predictor import Predictor
from mobilemamba.screen import make_console, on_screen
from mobilemamba.text import printable, writable

#: ``picture``, with the entries of a predictor's row for it, or with ``error``.
Answer = dict[str, Any]

#: Endings of the files that can be written.
FORMATS = (".csv", ".json")
_SECONDS = 5.0  # of work that may be lost when the process is killed
_MARK = ("Software", "mobilemamba predict")  # text in a drawing's PNG header


class AnswerFile:
    """A .csv or .json file that is rewritten periodically, so that a killed process leaves its results so far.

    Raises:
        ConfigError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_writable(path, "--output", FORMATS)
        self._due = time.monotonic() + _SECONDS

    def keep(self, answers: list[Answer], predictor: Predictor) -> None:
        """Writes the answers so far, if enough time has passed since the last write."""
        if time.monotonic() >= self._due:
            self.write(answers, predictor)

    def write(self, answers: list[Answer], predictor: Predictor) -> None:
        """Writes the answers so far.

        Raises:
            OSError: If the file cannot be written.
        """
        began = time.monotonic()
        as_json = has_ending(self.path, ".json")
        write_text_atomic(self.path, json.dumps(answers, indent=2) + "\n" if as_json else to_csv(answers, predictor))
        took = time.monotonic() - began
        self._due = began + took + max(_SECONDS, 20 * took)  # so that writing takes at most 5 % of the time


class Drawings:
    """A folder of drawings, named by the number of their picture.

    Each drawing is marked in its header. So those of an earlier run, which could be mistaken for new ones, can be
    removed at the end, but never any other picture.

    Args:
        folder: The folder; created if it does not exist.
        name: Name of the folder in messages, e.g. the option.

    Raises:
        ConfigError: If the folder cannot be created, or contains other pictures with such names.
    """

    def __init__(self, folder: Path, name: str) -> None:
        make_folder(folder, name)
        remove_unfinished(folder / "*.png")
        self.folder, self._written = folder, set[str]()
        self._earlier = [path for path in folder.iterdir() if re.fullmatch(r"\d{4,}(_labels)?\.png", path.name)]
        for path in self._earlier:
            if not _is_drawing(path):
                raise ConfigError(
                    f"{name} {printable(folder)}: {path.name} in it was not drawn by predict and would be lost; "
                    "choose another folder"
                )
        self._names, self._real = {path.name for path in self._earlier}, folder.resolve()

    def has_drawn(self, picture: Path) -> bool:
        """Whether a picture is a drawing of an earlier run in this folder, which may lie in a folder of pictures."""
        return picture.name in self._names and picture.parent.resolve() == self._real

    def save(self, number: int, drawings: Mapping[str, Image.Image]) -> None:
        """Writes the drawings of a picture.

        Args:
            number: Number of the picture, from 1.
            drawings: Suffix of the file name -> drawing.

        Raises:
            OSError: If a file cannot be written; no partial file is left.
        """
        for added, drawing in drawings.items():
            text, content = PngInfo(), io.BytesIO()
            text.add_text(*_MARK)
            drawing.save(content, "png", pnginfo=text)
            path = self.folder / f"{number:04d}{added}.png"
            write_atomic(path, content.getbuffer())
            self._written.add(path.name)

    def end(self) -> None:
        """Removes drawings of an earlier run that were not replaced."""
        for path in self._earlier:
            if path.name not in self._written:
                path.unlink(missing_ok=True)


def _is_drawing(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except OSError:
        return False


def to_csv(answers: list[Answer], predictor: Predictor) -> str:
    """Formats the lines of each picture, or its error, as CSV.

    Names are unchanged, except that carriage returns, which readers interpret as the end of a line, and bytes that are
    not UTF-8 are escaped.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", *predictor.columns, "error"])
    for found in answers:
        if "error" in found:
            writer.writerow([found["picture"], *[""] * len(predictor.columns), found["error"]])
        else:
            lines = predictor.lines(found) or [[""] * len(predictor.columns)]  # empty if nothing was found
            writer.writerows([found["picture"], *line, ""] for line in lines)
    return writable(text.getvalue())


def print_table(answers: list[Answer], predictor: Predictor) -> None:
    """Prints the results of each picture; it is no error if the reader of the output, e.g. ``head``, has ended."""
    console = make_console()
    with console.capture() as captured:
        console.print(_table(answers, predictor))
    try:
        sys.stdout.write(captured.get())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's exit


def _table(answers: list[Answer], predictor: Predictor) -> Table:
    height, width = predictor.card.preprocessing.img_size
    card = predictor.card
    network = f"{card.model} with {card.head}" if card.head else card.model
    title = Text(f"{on_screen(network)}, {height}x{width} px", "table.title")
    table = Table(title=title, title_justify="left")
    shown = [column for column in predictor.columns if column not in ("rank", "index")]  # these are only for files
    table.add_column("picture", overflow="fold")
    for column in shown:
        table.add_column(column, overflow="fold", justify="left" if column == "class" else "right")
    for found in answers:
        lines = [dict.fromkeys(shown, "") | {shown[0]: "unreadable"}]
        if "error" not in found:
            lines = [dict(zip(predictor.columns, line, strict=True)) for line in predictor.lines(found)]
            lines = lines or [dict.fromkeys(shown, "") | {shown[0]: "nothing found"}]
        for number, line in enumerate(lines):
            picture = on_screen(found["picture"]) if number == 0 else ""
            cells = [picture, *(_written(line[column]) for column in shown)]
            table.add_row(*map(Text, cells), end_section=number == len(lines) - 1)  # names may look like markup
    return table


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else on_screen(str(value))
