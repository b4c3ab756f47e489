"""A tool's options into its arguments, with one-line errors."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import docstring_parser
import jsonargparse

from mobilemamba.errors import ConfigError
from mobilemamba.messages import parser_message, unknown_setting, user_error


class _ParserError(Exception):
    """jsonargparse's own words."""


@contextlib.contextmanager
def short_errors(settings: Callable[[], Collection[str]] = list) -> Iterator[None]:
    """Turns jsonargparse's pages into one line.

    Args:
        settings: Gives the names that there are, one of which may have been meant.

    Raises:
        ConfigError: In its place.
    """
    try:
        yield
    except _ParserError as error:
        message = str(error)
        found = user_error(error)
        if found is None and (name := unknown_setting(message)):
            found = ConfigError(f"unknown setting {name}; {_hint(name, settings())}")
        raise found or ConfigError(parser_message(message)) from error


def _hint(name: str, known: Collection[str]) -> str:
    if name in known:
        return f"the {name.partition('.')[0]} that is chosen has none; choose its class before, e.g. --data ImageFolder"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else "the command's --help, and --help-all of fit, list what there is"


class ToolParser(jsonargparse.ArgumentParser):
    """Raises mistakes as one line instead of printing usage, types and given values over a page."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise --trainer.max_epoch passes as max_epochs.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As ever, but ``--setting=None`` is null: what jsonargparse makes of a null for the setting of a setting."""
        if args is not None:
            args = [f"{arg[:-4]}null" if arg.startswith("--") and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises the whole message; nested parsers quote each other's, so only the outermost is made short."""
        raise _ParserError(message) from ex

    def settings(self) -> list[str]:
        """The names of all settings, as a command line has them but for the dashes."""
        own = [name.removeprefix("--") for action in self._actions for name in action.option_strings]
        own = [name for name in own if not name.endswith(".help")]
        inner = [action.choices.values() for action in self._actions if isinstance(action.choices, dict)]  # subcommands
        return own + [name for parsers in inner for parser in parsers for name in parser.settings()]

    def parse(self, args: list[str]) -> jsonargparse.Namespace:
        """``parse_args`` with one-line errors.

        Raises:
            ConfigError: If the options are wrong.
        """
        with short_errors(self.settings):
            return self.parse_args(args)


def run_tool(command: str, function: str, args: list[str]) -> None:
    """Runs a tool with the options of a command line.

    Args:
        command: Its name.
        function: ``module:name``; its positional arguments and keywords are the command's.
        args: Options.

    Raises:
        MobileMambaError: For a user's mistake.
    """
    module, _, name = function.partition(":")
    tool = getattr(import_module(module), name)
    parser = ToolParser(prog=f"mobilemamba {command}", description=(tool.__doc__ or "").strip().partition("\n")[0])
    parser.add_function_arguments(tool, as_group=False, as_positional=True)
    parameters = signature(tool).parameters.values()
    several = [parameter.name for parameter in parameters if parameter.kind is Parameter.VAR_POSITIONAL]
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(tool.__doc__ or "").params}
    for name in several:
        parser.add_argument(name, nargs="*", default=[], help=described.get(name))
    yes_or_no = [parameter.name for parameter in parameters if parameter.annotation in (bool, "bool")]
    options = parser.parse(switches(args, yes_or_no)).as_dict()
    values = [value for name in several for value in options.pop(name)]
    tool(*values, **options)


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
