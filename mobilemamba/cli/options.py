"""Splitting of a command line into options with their values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """An option, or an argument that belongs to no option.

    Attributes:
        name: Name with its dashes.
        value: Value, or None.
        given: The one or two command-line arguments of the option.
    """

    name: str
    value: str | None
    given: Sequence[str]


def read_options(args: Sequence[str]) -> Iterator[Option]:
    """Yields the options of a command line, in order; a value is the next argument, or follows ``=``."""
    rest = list(args)
    while rest:
        name, equals, value = rest[0].partition("=")
        follows = name.startswith("-") and not equals and len(rest) > 1 and not rest[1].startswith("--")
        given, rest = rest[: 1 + follows], rest[1 + follows :]
        if not name.startswith("-"):
            name, equals = given[0], ""
        yield Option(name, value if equals else given[1] if follows else None, given)


def config_values(args: Sequence[str]) -> list[str]:
    """Returns the values of ``--config``: files, or settings as text."""
    return [value for name, value, _ in read_options(args) if name in ("--config", "-c") and value is not None]
