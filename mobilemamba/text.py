"""Text from outside, such as names of files and classes, as it can be written and shown."""

from __future__ import annotations

import re
import unicodedata


def printable(text: object) -> str:
    """A text from outside, a file's name say, in one line that any UTF-8 file and any terminal takes.

    Control characters, line breaks among them, stand as escapes, and so do bytes that are not UTF-8.
    """
    return "".join(map(_visible, str(text)))


def writable(text: str) -> str:
    """A text of several lines that any UTF-8 file takes, as it is but for the bytes that are not UTF-8.

    These, and carriage returns, which readers take for the end of a line, stand as :func:`printable` shows them.
    """
    return re.sub(r"[\r\ud800-\udfff]", lambda found: printable(found[0]), text)


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python writes a byte of a file's name that it cannot decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if hidden else character


def of_names(text: str) -> str:
    """A complaint about a name that is no UTF-8, in words."""
    return re.sub(r"'utf-8' codec can't encode .* not allowed", "a name that is not UTF-8; rename it", text)
