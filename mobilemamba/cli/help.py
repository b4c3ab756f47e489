"""Help texts that are generated from classes: of a task, of a data set, and of a group of their settings.

Lightning's parser has ``--model.help CLASS`` and ``--data.help CLASS``; here the class may be left out, and groups of
settings have help, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jsonargparse
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from mobilemamba.cli.messages import WRITTEN
from mobilemamba.cli.options import read_options
from mobilemamba.cli.tool import ToolParser
from mobilemamba.data import (
    ADE20K,
    COCO,
    COCOFolder,
    FashionMNISTSample,
    FashionObjects,
    FashionScenes,
    ImageFolder,
    ImageNet,
    SegmentationFolder,
    YOLOFolder,
)
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Sweep
from mobilemamba.tasks import TASKS
from mobilemamba.tasks.settings import init_arguments

#: Setting -> classes of this package to choose from, the default first. Importing them makes their names known.
KINDS: dict[str, list[type]] = {
    "model": [*TASKS.values()],
    "data": [
        *(FashionMNISTSample, ImageFolder, ImageNet),
        *(FashionScenes, SegmentationFolder, ADE20K),
        *(FashionObjects, COCOFolder, YOLOFolder, COCO),
    ],
}

#: Defaults of the default task's arguments, whose own are the paper's, for 300 epochs of ImageNet in batches of 1024.
DEFAULTS = {"lr": 1e-3, "reference_batch_size": 64, "warmup_epochs": 0.5}
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
            chosen[group] = _class_named(value or "") or chosen[group]
        elif found := re.fullmatch(r"--(model|data)((?:\.\w+)*)\.help", name):
            group, path = found[1], found[2]
            described = _class_named(value) if value and not path else chosen[group]
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


def class_settings() -> list[str]:
    """Lists the settings of sweeps, of this package's tasks and data sets, and of Lightning's callbacks and loggers."""
    kinds = [("sweep", Sweep), *((group, kind) for group, found in known_classes().items() for kind in found)]
    return [setting for group, kind in kinds for setting in _settings(kind, group)]


def known_classes() -> dict[str, list[type]]:
    """Returns setting -> classes to choose from."""
    bases: dict[str, type] = {"trainer.callbacks": Callback, "trainer.logger": Logger, "trainer.profiler": Profiler}
    return KINDS | {group: list(_below(base)) for group, base in bases.items()}


def _below(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _below(kind)


def _settings(kind: type, prefix: str) -> Iterator[str]:
    own = kind.__module__.startswith("mobilemamba.")
    parts = parts_of(kind) if own else {}
    for name in init_arguments(kind) if own else inspect.signature(kind).parameters:
        yield f"{prefix}.{name}"
        if name in parts:
            yield from _settings(parts[name], f"{prefix}.{name}")


def parts_of(kind: type) -> dict[str, type]:
    """Returns the arguments of a class that are configured by a dataclass: name -> dataclass."""
    parts: dict[str, type] = {}
    for name, hint in init_arguments(kind).items():
        for choice in (hint, *typing.get_args(hint)):
            if isinstance(choice, type) and dataclasses.is_dataclass(choice):
                parts[name] = choice
    return parts


def _class_named(name: str) -> type | None:
    named = (kind for kinds in KINDS.values() for kind in kinds if kind.__name__ == name.rpartition(".")[2])
    return next(named, None)


def _inside(kind: type, path: str) -> type:
    for part in path.split(".")[1:]:
        parts = parts_of(kind)
        if part not in parts:
            raise ConfigError(
                f"--{path}.help: {kind.__name__} has no such group of settings; expected one of: {', '.join(parts)}"
            )
        kind = parts[part]
    return kind
