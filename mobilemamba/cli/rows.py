"""Reading of a sweep's rows with their resolved settings, and selection of the options that apply to them."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from mobilemamba.cli.messages import unknown
from mobilemamba.cli.options import read_options
from mobilemamba.cli.parser import Parser, plain
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Config, Row, Sweep, expand
from mobilemamba.sweep.settings import is_inside, short_key

#: Options that select the sweep and are not passed to its rows.
_OF_SWEEP = ("config", "name", "table_size", "sweep", "trainer.default_root_dir")
#: Options that are an error, as they would change a row's network or conflict with the sweep's own.
_REFUSED = ("model", "ckpt_path", "trainer.callbacks", "per_class", "plots")


def read_rows(parser: Parser, config: Namespace, given: Collection[str]) -> tuple[Sweep, list[Row]]:
    """Reads the ``sweep`` section of a command's settings.

    Args:
        parser: Parser of the command.
        config: Settings of the command.
        given: Names of the settings that are given as options.

    Raises:
        ConfigError: If the section or a row of it is wrong.
    """
    content, names = config.sweep.as_dict(), [field.name for field in fields(Sweep)]
    for setting in given:  # jsonargparse silently drops unknown settings of a JSON text
        if setting.startswith("sweep.") and setting.split(".")[1] not in names:
            raise unknown(setting, parser.settings(), parser.helps)
    sweep = Sweep(**{name: content[name] for name in names})  # without the path of its file
    if config.ckpt_path is not None:
        raise ConfigError(f"ckpt_path={config.ckpt_path} with a sweep: rows go on by themselves; leave it out")

    base = plain(parser, config)

    def resolve(overrides: Config) -> Config:
        return plain(parser, parser.parse(["--config", json.dumps(overrides)], _as_parsed(base)))

    return sweep, expand(sweep, Path(config.trainer.default_root_dir), resolve, given)


def _as_parsed(base: Config) -> Namespace:
    """Returns a base to parse a row's settings over: parsing it anew for each row would take most of the time.

    Groups and classes are namespaces, as jsonargparse keeps them; their values are JSON types.
    """
    parsed = Namespace(**copy.deepcopy(base))
    for name, part in list(vars(parsed).items()):
        if isinstance(part, dict):
            parsed[name] = Namespace(**part)
            if "init_args" in part:
                parsed[name].init_args = Namespace(**part["init_args"])
    return parsed


def passed_on(args: Sequence[str]) -> list[str]:
    """Returns the options of ``validate --config SWEEP`` that are passed to each row, in the given order."""
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
