"""Conversion of arbitrary text, such as names of files and classes, so that it can be written and displayed."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence

#: Unicode's embeddings, overrides and isolates, and their ends, which turn round even what is printed after a name.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def printable(text: object) -> str:
    """Converts a text, e.g. a file's name, to one line that any UTF-8 file and any terminal accepts.

    Control characters, including line breaks and those that change the direction of what follows, and bytes that are
    not UTF-8 are replaced by escapes.
    """
    return "".join(map(_visible, str(text)))


def shorten(name: str, most: int = 30) -> str:
    """Cuts out the middle of a long name, as names that begin alike often end differently."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def writable(text: str) -> str:
    """Converts a text of several lines so that any UTF-8 file accepts it.

    Bytes that are not UTF-8, and carriage returns, which readers interpret as the end of a line, become
    :func:`printable`; everything else is unchanged.
    """
    return re.sub(r"[\r\ud800-\udfff]", lambda found: printable(found[0]), text)


def abridged(parts: Sequence[str], separator: str = ", ") -> str:
    """Joins the first four of some phrases, and counts the others."""
    more = len(parts) - 4
    return separator.join([*parts[:4], *([f"and {more} more"] if more > 0 else [])])


def csv_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Formats rows as :func:`writable` CSV; the columns are those of all rows, in order of first occurrence."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return writable(text.getvalue())


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's representation of an undecodable byte in a file's name
        return f"\\x{ord(character) - 0xDC00:02x}"
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
        unicodedata.bidirectional(character) in _DIRECTIONS
    )
    return character.encode("unicode_escape").decode() if hidden else character


def explain_encoding(text: str) -> str:
    """Replaces Python's message about a name that is not UTF-8 by a readable one."""
    return re.sub(r"'utf-8' codec can't encode .* not allowed", "a name that is not UTF-8; rename it", text)
