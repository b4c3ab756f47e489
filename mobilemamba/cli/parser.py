"""Options of Lightning's commands into a configuration, with one-line errors."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mobilemamba.cli.help import class_settings
from mobilemamba.cli.tool import ToolParser
from mobilemamba.cli.yaml_keys import MODE
from mobilemamba.sweep import Config, flatten


class Parser(ToolParser, LightningArgumentParser):
    """The same for Lightning's subcommands, with their ``--config``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, **kwargs})

    def settings(self) -> list[str]:
        """With the short options, and the arguments of a sweep and of our tasks and data sets."""
        return [*super().settings(), "weights", *class_settings()]


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
