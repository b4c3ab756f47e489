"""A command line as its options, each with its value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """An option, or a value that belongs to none.

    Attributes:
        name: With its dashes.
        value: None where there is none.
        given: The one or two arguments that it is.
    """

    name: str
    value: str | None
    given: Sequence[str]


def read_options(args: Sequence[str]) -> Iterator[Option]:
    """The options of a command line, in order; a value follows its name, or stands behind ``=``."""
    rest = list(args)
    while rest:
        name, equals, value = rest[0].partition("=")
        follows = name.startswith("-") and not equals and len(rest) > 1 and not rest[1].startswith("--")
        given, rest = rest[: 1 + follows], rest[1 + follows :]
        if not name.startswith("-"):
            name, equals = given[0], ""
        yield Option(name, value if equals else given[1] if follows else None, given)


def config_values(args: Sequence[str]) -> list[str]:
    """What ``--config`` is given: files, or settings as text."""
    return [value for name, value, _ in read_options(args) if name in ("--config", "-c") and value is not None]
