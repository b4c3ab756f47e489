"""The rows of a sweep, each with its resolved settings."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from mobilemamba.cli.messages import unknown
from mobilemamba.cli.parser import Parser, plain
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Config, Row, Sweep, expand


def read_rows(
    parser: Parser, command: str, config: Any, base: Config, given: Collection[str]
) -> tuple[Sweep, list[Row]]:
    """Reads the ``sweep`` section of a command's settings.

    Args:
        parser: Of all commands.
        command: Which one.
        config: Its settings.
        base: The same as plain values, without the sweep.
        given: The settings that are options.

    Raises:
        ConfigError: If the section or a row of it is wrong.
    """
    content, names = config.sweep.as_dict(), [field.name for field in fields(Sweep)]
    for setting in given:  # jsonargparse drops what it does not know of a JSON text
        if setting.startswith("sweep.") and setting.split(".")[1] not in names:
            raise unknown(setting, parser.settings(), parser.helps)
    sweep = Sweep(**{name: content[name] for name in names})  # not its file's path
    if config.ckpt_path is not None:
        raise ConfigError(f"ckpt_path={config.ckpt_path} with a sweep: rows go on by themselves; leave it out")

    def resolve(overrides: Config) -> Config:
        texts = [json.dumps(base), json.dumps(overrides)]
        return plain(parser, parser.parse([command, *(part for text in texts for part in ("--config", text))]))

    return sweep, expand(sweep, Path(config.trainer.default_root_dir), resolve, given)
