"""Options into a configuration, with one-line errors."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mobilemamba.cli.yaml_keys import MODE
from mobilemamba.errors import ConfigError
from mobilemamba.messages import parser_message, user_error
from mobilemamba.sweep import Config, flatten


class _ParserError(Exception):
    """jsonargparse's own words."""


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Turns jsonargparse's pages into one line.

    Raises:
        ConfigError: In its place.
    """
    try:
        yield
    except _ParserError as error:
        raise user_error(error) or ConfigError(parser_message(str(error))) from error


class ToolParser(jsonargparse.ArgumentParser):
    """Raises mistakes as one line instead of printing usage, types and given values over a page."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise --trainer.max_epoch passes as max_epochs.
        super().__init__(*args, **{"allow_abbrev": False, "parser_mode": MODE, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As ever, but ``--setting=None`` is null: what jsonargparse makes of a null for the setting of a setting."""
        if args is not None:
            args = [f"{arg[:-4]}null" if arg.startswith("--") and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises the whole message; nested parsers quote each other's, so only the outermost is made short."""
        raise _ParserError(message) from ex

    def parse(self, args: list[str]) -> jsonargparse.Namespace:
        """``parse_args`` with one-line errors.

        Raises:
            ConfigError: If the options are wrong.
        """
        with short_errors():
            return self.parse_args(args)


def switches(args: list[str], names: list[str]) -> list[str]:
    """Options with ``--name`` and ``--no-name`` for the yes-or-no settings, which jsonargparse wants a value for.

    Args:
        args: As given.
        names: Of the settings.
    """
    spelt = []
    for arg, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        name, no = arg.removeprefix("--").removeprefix("no-"), arg.startswith("--no-")
        bare = arg.startswith("--") and name in names and (no or after.lower() not in ("true", "false"))
        spelt.append(f"--{name}={str(not no).lower()}" if bare else arg)
    return spelt


class Parser(ToolParser, LightningArgumentParser):
    """The same for Lightning's subcommands, with their ``--config``."""


def plain(parser: LightningArgumentParser, config: jsonargparse.Namespace) -> Config:
    """A parsed command line as JSON types: without the subcommand's name, its files and its sweep."""
    text = parser.dump(config, format="json", skip_unset=False, skip_validation=True)
    plain = json.loads(text)[config.subcommand]
    return {key: value for key, value in plain.items() if key not in ("config", "sweep")}


def given_settings(args: list[str]) -> list[str]:
    """Dotted names of the settings in options, those inside a JSON value included."""
    given: list[str] = []
    for arg, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        if not arg.startswith("--") or arg.startswith("--config"):
            continue
        name, equals, value = arg[2:].partition("=")
        try:
            parsed = yaml.safe_load(value if equals else after)
        except yaml.YAMLError:
            parsed = None
        given += flatten(parsed, f"{name}.") if isinstance(parsed, dict) and parsed else [name]
    return given
