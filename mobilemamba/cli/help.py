"""Help texts that are generated from classes: of a task, of a data set, and of a group of their settings.

Lightning's parser has ``--model.help CLASS`` and ``--data.help CLASS``; here the class may be left out, and groups of
settings have help, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jsonargparse

from mobilemamba.cli.classes import DEFAULTS, KINDS, class_named, parts_of
from mobilemamba.cli.messages import WRITTEN
from mobilemamba.cli.options import read_options
from mobilemamba.cli.tool import ToolParser
from mobilemamba.errors import ConfigError

_LISTS = (list, tuple, Sequence, Iterable)


class SettingsHelp(jsonargparse.DefaultHelpFormatter):
    """Tells what to write for a setting, and its default, in words and values of YAML rather than Python's."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hint, default = getattr(action, "_typehint", action.type), action.default
        known = getattr(action, "_jsonargparse_preexpanded_help", False) or default == argparse.SUPPRESS
        if known or hint is None or not action.option_strings:
            return super()._get_help_string(action)
        if isinstance(default, Mapping | jsonargparse.Namespace):
            default = default.get("class_path", "settings")
        shown = default if isinstance(default, str) else json.dumps(default, default=str)
        words = [] if hint is bool or typing.get_origin(hint) is typing.Literal else [in_words(hint)]  # those are shown
        more = getattr(action, "extra_help", str)()  # of jsonargparse: the known classes
        told = "; ".join([*words, f"default: {shown}{more}"])
        return f"{(action.help or '').replace('``', '')} ({told})".strip()


def in_words(hint: Any) -> str:
    """Describes what a user writes for a value of a type."""
    origin, inner = typing.get_origin(hint), [in_words(one) for one in typing.get_args(hint) if one is not ...]
    if origin is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(inner))
    if origin in _LISTS and inner:
        fixed = origin is tuple and ... not in typing.get_args(hint)
        return f"[{', '.join(inner)}]" if fixed else f"[{inner[0]}, ...]"
    if dataclasses.is_dataclass(hint):
        return "settings"
    return WRITTEN.get(getattr(origin or hint, "__name__", ""), "a class").partition(",")[0]  # without an example


def print_help(command: str, options: list[str]) -> bool:
    """Prints the help for ``--model.help``, ``--model.mixing.help`` and the like; returns whether it was requested."""
    chosen = {group: kinds[0] for group, kinds in KINDS.items()}
    for name, value, _ in read_options(options):
        if name in ("--model", "--data"):
            group = name.removeprefix("--")
            chosen[group] = class_named(value or "") or chosen[group]
        elif found := re.fullmatch(r"--(model|data)((?:\.\w+)*)\.help", name):
            group, path = found[1], found[2]
            described = class_named(value) if value and not path else chosen[group]
            if described is None:
                return False  # a class that is not ours, which the parser imports
            parser = ToolParser(prog=f"mobilemamba {command}", add_help=False, formatter_class=SettingsHelp)
            linked: set[str | int] = {"num_classes"} if (group, path) == ("model", "") else set()  # set by the data
            parser.add_class_arguments(_inside(described, f"{group}{path}"), f"{group}{path}", skip=linked)
            if described is KINDS["model"][0] and not path:
                parser.set_defaults({f"model.{name}": default for name, default in DEFAULTS.items()})
            sys.stdout.write(parser.format_help())
            return True
    return False


def _inside(kind: type, path: str) -> type:
    for part in path.split(".")[1:]:
        parts = parts_of(kind)
        if part not in parts:
            raise ConfigError(
                f"--{path}.help: {kind.__name__} has no such group of settings; expected one of: {', '.join(parts)}"
            )
        kind = parts[part]
    return kind
