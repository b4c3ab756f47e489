"""Conversion of a tool's options to arguments of its function, with one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from mobilemamba.cli.messages import mistake
from mobilemamba.errors import user_error

#: Types of options that take several values.
_LISTS = {list, Sequence}


class _ParserError(Exception):
    """An error with jsonargparse's own message."""


class ToolParser(jsonargparse.ArgumentParser):
    """Parser whose errors are one line, instead of a page with usage, types and given values.

    Attributes:
        helps: Options that describe all settings.
    """

    helps = "--help"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise --trainer.max_epoch would be accepted as max_epochs.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(  # type: ignore[override]  # further arguments are passed on, whatever their names in jsonargparse
        self,
        args: Sequence[str] | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        """Parses arguments, treating ``--setting=None`` as null, as jsonargparse turns a nested null into None."""
        if args is not None:
            args = [f"{arg[:-4]}null" if arg.startswith("--") and arg.endswith("=None") else arg for arg in args]
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises the whole message, as nested parsers quote each other, and only the outermost message is shortened."""
        raise _ParserError(message) from ex

    def settings(self) -> list[str]:
        """Returns the names of all settings, as on the command line but without dashes."""
        own = [name.removeprefix("--") for action in self._actions for name in action.option_strings]
        own = [name for name in own if not name.endswith(".help")]
        inner = [action.choices.values() for action in self._actions if isinstance(action.choices, dict)]  # subcommands
        return own + [name for parsers in inner for parser in parsers for name in parser.settings()]

    def classes(self) -> dict[str, list[str]]:
        """Returns setting -> names of classes to choose from."""
        return {}

    @contextlib.contextmanager
    def short_errors(self, args: Sequence[str] = ()) -> Iterator[None]:
        """Context manager that replaces jsonargparse's long errors about a command line by one line."""
        try:
            yield
        except _ParserError as error:
            found = user_error(error)
            raise found or mistake(str(error), args, self.settings(), self.classes(), self.helps) from error

    def parse(self, args: list[str], base: jsonargparse.Namespace | None = None) -> jsonargparse.Namespace:
        """Runs ``parse_args`` with one-line errors; ``base``, if given, holds the settings before the options."""
        with self.short_errors(args):
            return self.parse_args(args, base)


class _ToolHelp(jsonargparse.DefaultHelpFormatter):
    """Tells an option's default where there is one, and no types of Python's."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return super()._get_help_string(action)
        text, default = (action.help or "").replace("``", ""), action.default
        if isinstance(default, bool):
            default = str(default).lower()
        if not action.option_strings or default in (None, argparse.SUPPRESS):
            return text
        return f"{text} (default: {default})"


def run_tool(command: str, function: str, args: list[str]) -> None:
    """Runs a tool with the options of a command line.

    Args:
        command: Name of the tool.
        function: ``module:name`` of a function whose positional arguments and keywords become those of the command.
        args: Options.

    Raises:
        MobileMambaError: For a user's mistake.
    """
    module, _, name = function.partition(":")
    tool = getattr(import_module(module), name)
    does = (tool.__doc__ or "").strip().partition("\n")[0]
    parser = ToolParser(prog=f"mobilemamba {command}", description=does, formatter_class=_ToolHelp)
    parameters = signature(tool).parameters.values()
    bare = [parameter for parameter in parameters if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD]
    # After an argument without a name, one that may be left out needs no name either: export WEIGHTS [OUT].
    pairs = itertools.pairwise(bare)
    optional = [after.name for before, after in pairs if before.default is Parameter.empty and after.default is None]
    parser.add_function_arguments(tool, as_group=False, as_positional=True, skip=set(optional))
    several = [parameter.name for parameter in parameters if parameter.kind is Parameter.VAR_POSITIONAL]
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(tool.__doc__ or "").params}
    for name in several:
        parser.add_argument(name, nargs="*", default=[], help=described.get(name))
    kinds = get_type_hints(tool)
    for name in optional:  # after the required ones
        parser.add_argument(name, nargs="?", type=kinds[name], help=described.get(name))
    yes_or_no = [name for name, kind in kinds.items() if kind is bool]
    lists = [parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    lists = [name for name in lists if {get_origin(kind) for kind in (kinds[name], *get_args(kinds[name]))} & _LISTS]
    options = parser.parse(spell_out_switches(join_lists(args, lists), yes_or_no)).as_dict()
    values = [value for name in several for value in options.pop(name)]
    tool(*values, **options)


def join_lists(args: list[str], names: list[str]) -> list[str]:
    """Joins several values after ``--name`` to one list, as jsonargparse expects; a repeated option adds to its list.

    Args:
        args: Command-line arguments; a list may also be given as one value, ``[a, b]``.
        names: Names of the settings that take several values.
    """
    options, spelt, seen = {f"--{name}" for name in names}, list[str](), set[str]()
    while args:
        (name, equals, value), args = args[0].partition("="), args[1:]
        several, values = name in options, [value]
        if several and not equals:
            values = list(itertools.takewhile(lambda arg: not re.match(r"--|-[a-zA-Z]", arg), args))  # "-" is a value
            args = args[len(values) :]
        if several and values:
            whole = len(values) == 1 and re.match(r"\[|null$", values[0])
            more = "+" if name in seen else ""
            seen.add(name)
            spelt.append(f"{name}{more}={values[0] if whole else json.dumps(values)}")
        else:
            spelt.append(f"{name}{equals}{value}")
    return spelt


def spell_out_switches(args: list[str], names: list[str]) -> list[str]:
    """Expands ``--name`` and ``--no-name`` of boolean settings to options with a value, as jsonargparse expects.

    Args:
        args: Command-line arguments.
        names: Names of the boolean settings.
    """
    spelt = []
    for arg, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        name, no = arg.removeprefix("--").removeprefix("no-"), arg.startswith("--no-")
        bare = arg.startswith("--") and name in names and (no or after.lower() not in ("true", "false"))
        spelt.append(f"--{name}={str(not no).lower()}" if bare else arg)
    return spelt
