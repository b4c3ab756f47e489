"""Options of Lightning's commands into a configuration, with one-line errors."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import jsonargparse
import timm
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mobilemamba.cli.help import class_settings, known_classes
from mobilemamba.cli.shorthand import MODE
from mobilemamba.cli.tool import ToolParser
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Config, flatten


class Parser(ToolParser, LightningArgumentParser):
    """The same for Lightning's subcommands, with their ``--config``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, **kwargs})

    def parse(self, args: list[str]) -> jsonargparse.Namespace:
        """As ever; a mistake in a configuration file names the file.

        Raises:
            ConfigError: If an option or a file is wrong.
        """
        files = config_files(args)
        for file in files:
            check_config_file(file)
        try:
            return super().parse(args)
        except ConfigError as error:
            for file in files:
                if Path(file).name not in str(error) and self._complaint([args[0], "--config", file]) == str(error):
                    raise ConfigError(f"{file}: {error}") from error
            raise

    def _complaint(self, args: list[str]) -> str | None:
        try:
            super().parse(args)
        except ConfigError as error:
            return str(error)
        return None

    def settings(self) -> list[str]:
        """With the short options, and the arguments of a sweep and of our tasks and data sets."""
        return [*super().settings(), "weights", *class_settings()]

    def classes(self) -> list[str]:
        """Of Lightning and of this package, and timm's models, which stand for a task."""
        return [*(kind.__name__ for kinds in known_classes().values() for kind in kinds), *timm.list_models()]


def config_files(args: list[str]) -> list[str]:
    """The configuration files among options; a configuration may also be given as text."""
    values = [
        value if equals else after
        for arg, after in itertools.pairwise([*args, ""])
        for name, equals, value in [arg.partition("=")]
        if name in ("--config", "-c")
    ]
    return [value for value in values if os.path.isfile(value)]  # noqa: PTH113 - Path's raises for a long text


def check_config_file(path: str) -> None:
    """Refuses a file that holds no settings at all.

    Raises:
        ConfigError: With the place in the file, where there is one.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--config {path}: expected text in UTF-8, and byte {error.start} is none; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; choose a file that can be read") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; indent by spaces, not by tabs" if "\\t" in (error.problem or "") else ""
        raise ConfigError(f"--config {path}: {place}{error.problem or error.context}{hint}; expected YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: {error}; expected YAML") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"--config {path} holds {found}; expected settings, such as trainer: {{max_epochs: 5}}")


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
