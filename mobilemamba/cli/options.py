"""A command line as its options, each with its value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.settings import flatten, is_inside, short_key

#: Options that choose the sweep, and so are none of its rows' own.
_OF_SWEEP = ("config", "name", "table_size", "sweep", "trainer.default_root_dir")
#: Options that would make a row something else than what was trained, or take the place of the sweep's own.
_REFUSED = ("model", "ckpt_path", "trainer.callbacks", "per_class")


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


def given_settings(args: Sequence[str]) -> list[str]:
    """Dotted names of the settings in options, those inside a JSON value included."""
    given: list[str] = []
    for name, value, _ in read_options(args):
        if not name.startswith("--") or name.startswith("--config"):
            continue
        try:
            parsed = yaml.safe_load(value or "")
        except yaml.YAMLError:
            parsed = None
        given += flatten(parsed, f"{name[2:]}.") if isinstance(parsed, dict) and parsed else [name[2:]]
    return given


def passed_on(args: Sequence[str]) -> list[str]:
    """The options of ``validate --config SWEEP`` that reach each row, in the order given."""
    kept: list[str] = []
    for name, _, given in read_options(args):
        key = short_key(name.removeprefix("--").removesuffix("+"))
        if is_inside(key, _REFUSED):
            raise ConfigError(
                f"{name} with a sweep: every finished row is evaluated with its own network; leave it out, or add "
                "--sweep null to evaluate one network"
            )
        kept += [] if is_inside(key, _OF_SWEEP) else given
    return kept
