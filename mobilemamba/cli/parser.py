"""Parsing of the options of Lightning's commands, with one-line errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import timm
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from mobilemamba.cli.classes import class_settings, known_classes
from mobilemamba.cli.help import SettingsHelp
from mobilemamba.cli.messages import unknown
from mobilemamba.cli.options import config_values, read_options
from mobilemamba.cli.shorthand import MODE, paths_from_here
from mobilemamba.cli.tool import ToolParser
from mobilemamba.errors import ConfigError
from mobilemamba.files import why_no_plain_file
from mobilemamba.sweep import Config, flatten
from mobilemamba.sweep.settings import lookup
from mobilemamba.text import printable


class Parser(ToolParser, LightningArgumentParser):
    """:class:`ToolParser` for Lightning's subcommands, with their ``--config``."""

    helps = "--help or --help-all"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": MODE, "formatter_class": SettingsHelp, **kwargs})

    def parse(self, args: list[str], base: jsonargparse.Namespace | None = None) -> jsonargparse.Namespace:
        """Parses arguments; the error for a mistake in a configuration file names the file."""
        try:
            return self._parse(args, base)
        except ConfigError as error:
            # A value without an option and an option without a value are of the command line, and jsonargparse repeats
            # them in the next parsing.
            of_line = re.match(r"unexpected |--\S+ has no value", str(error))
            for file in filter(os.path.isfile, [] if of_line else config_values(args)):
                if Path(file).name not in str(error) and self._complaint([args[0], "--config", file]) == str(error):
                    raise ConfigError(f"{file}: {error}") from error
            raise

    def _complaint(self, args: list[str]) -> str | None:
        try:
            self._parse(args)
        except ConfigError as error:
            return str(error)
        return None

    def _parse(self, args: list[str], base: jsonargparse.Namespace | None = None) -> jsonargparse.Namespace:
        """Parses arguments, and refuses unknown sections that are empty, which jsonargparse drops."""
        contents = [read_config(value) for value in config_values(args)]
        contents += [{name[2:]: {}} for name, value, _ in read_options(args) if name[:2] == "--" and value == "{}"]
        with paths_from_here():
            config = super().parse(args, base)
        parsed = (config[args[0]] if base is None else config).as_dict()  # over a base, of the command alone
        for name in (name for content in contents for name, value in flatten(content).items() if value == {}):
            setting = ".".join(name.split(".")[:2]) if name.startswith("sweep.") else name  # not names of rows
            if lookup(parsed, setting) is None and setting not in (known := self.settings()):
                raise unknown(setting, known, self.helps)
        return config

    def settings(self) -> list[str]:
        """Returns the names of all settings, including short options, and those of sweeps, tasks and data sets."""
        return [*super().settings(), "weights", *class_settings()]

    def classes(self) -> dict[str, list[str]]:
        """Returns setting -> names of Lightning's and our classes, and of timm's models, which stand for a task."""
        names = {group: [kind.__name__ for kind in kinds] for group, kinds in known_classes().items()}
        return names | {"model": [*names["model"], *timm.list_models()]}


def read_config(value: str) -> dict[str, Any]:
    """Returns the content of a value of ``--config``, which is a file or YAML text.

    Raises:
        ConfigError: If it is neither, or holds no settings.
    """
    shown = f"--config {printable(value[:200])}"
    is_text = re.search(r"\{|:\s", value) and not os.path.isfile(value)  # noqa: PTH113 - Path raises for a long text
    try:
        if not is_text and (kind := why_no_plain_file(value)):
            raise OSError(None, f"it is {kind}")
        content = yaml.safe_load(value if is_text else Path(value).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown}: expected text in UTF-8, and byte {error.start} is none; save the file as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{shown}: {reason}; choose a file that can be read, by its path from here") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; indent by spaces, not by tabs" if "\\t" in (error.problem or "") else ""
        raise ConfigError(f"{shown}: {place}{error.problem or error.context}{hint}; expected YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}: {error}; expected YAML") from None
    if not isinstance(content, dict):
        kinds = {type(None): "nothing", str: "text", list: "a list"}
        found = kinds.get(type(content), f"a {type(content).__name__}")
        raise ConfigError(f"{shown} holds {found}; expected settings, such as trainer: {{max_epochs: 5}}")
    return content


def plain(parser: LightningArgumentParser, config: jsonargparse.Namespace) -> Config:
    """Converts a command's settings to JSON types, without files and sweep; the parser is that of the command."""
    settings = json.loads(parser.dump(config, format="json", skip_unset=False, skip_validation=True))
    return {key: value for key, value in settings.items() if key not in ("config", "sweep")}


def given_settings(args: Sequence[str]) -> list[str]:
    """Returns the dotted names of the settings given as options, including those inside a JSON value."""
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
