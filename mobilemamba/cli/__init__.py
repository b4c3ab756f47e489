"""The command line for ``fit``, ``validate`` and ``test``, which Lightning runs, for a single run or a sweep."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as the tools do not need Lightning
    from lightning.pytorch.cli import LightningCLI

    from mobilemamba.sweep import Row

__all__ = ["plan", "run_lightning"]


def plan(args: list[str]) -> list[Row]:
    """Returns the runs that ``mobilemamba fit`` would train with these options, with their resolved configurations.

    Args:
        args: Options of ``fit``, e.g. ``["--config", "experiments/ablation_xi.yaml"]``.

    Returns:
        Every row of the sweep, or a single row named ``base``. ``row.config`` is the configuration;
        ``mobilemamba.sweep.network_kwargs(row.config)`` returns arguments of ``timm.create_model``.

    Raises:
        ConfigError: If the configuration or one of its rows is wrong.
    """
    from mobilemamba.cli.lightning_cli import Planner
    from mobilemamba.sweep import Row

    with contextlib.ExitStack() as resources:
        cli = Planner(["fit", *args], resources)
    config = cli.config.fit
    return cli.rows or [Row("base", Path(config.trainer.default_root_dir), cli.resolved())]


def run_lightning(command: str, options: list[str]) -> LightningCLI | None:
    """Runs one of Lightning's commands.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        options: Options of the command.

    Returns:
        Lightning's CLI object with ``trainer``, ``model`` and ``datamodule``; None if help was printed.

    Raises:
        MobileMambaError: For a user's mistake.
    """
    from mobilemamba.cli.help import print_help
    from mobilemamba.cli.lightning_cli import MobileMambaCLI
    from mobilemamba.cli.mistakes import as_user_errors

    if print_help(command, options):
        return None
    options = ["--help" if option == "--help-all" else option for option in options]
    with contextlib.ExitStack() as resources, as_user_errors(options):
        return MobileMambaCLI([command, *options], resources)
