"""The command line: Lightning's ``fit``, ``validate`` and ``test``, sweeps, and the tools."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sys
import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mobilemamba.allocator import keep_freed_memory
from mobilemamba.cli.lightning_cli import MobileMambaCLI, Planner
from mobilemamba.cli.parser import ToolParser, switches
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.messages import user_error
from mobilemamba.sweep import Row
from mobilemamba.version import __version__

__all__ = ["MobileMambaCLI", "main", "plan", "run"]

COMMANDS = {
    "fit": "train a network; with a sweep: section, every row of a table",
    "validate": "accuracy of a checkpoint on the validation pictures",
    "test": "accuracy of a checkpoint on the test pictures",
}


def plan(args: list[str]) -> list[Row]:
    """The runs that ``mobilemamba fit`` with these options stands for, each with its resolved configuration.

    Args:
        args: Options of ``fit``, e.g. ``["--config", "experiments/ablation_xi.yaml"]``.

    Returns:
        Every row of the sweep, or a single row named ``base``. ``row.config`` is the configuration,
        ``mobilemamba.sweep.network_kwargs(row.config)`` what ``timm.create_model`` takes.

    Raises:
        ConfigError: If the configuration or one of its rows is wrong.
    """
    with contextlib.ExitStack() as resources:
        cli = Planner(["fit", *args], resources)
    config = cli.config.fit
    return cli.rows or [Row("base", Path(config.trainer.default_root_dir), cli.resolved())]


def main(args: list[str] | None = None) -> LightningCLI | None:
    """Runs a command line.

    Args:
        args: By default this process's own.

    Returns:
        Lightning's CLI object with ``trainer``, ``model`` and ``datamodule``; None for a tool and for ``--help``.

    Raises:
        MobileMambaError: For a user's mistake; :func:`run` prints it as one line.
    """
    args = sys.argv[1:] if args is None else list(args)
    command = args[0] if args else "--help"
    if command in COMMANDS:
        with contextlib.ExitStack() as resources:
            return MobileMambaCLI(args, resources)
    if command == "--version":
        sys.stdout.write(f"mobilemamba {__version__}\n")
        return None
    tools = _tools()
    if command in ("-h", "--help"):
        sys.stdout.write(_help(tools) + "\n")
        return None
    if command not in tools:
        raise ConfigError(f"unknown command {command!r}; expected one of: {', '.join([*COMMANDS, *tools])}")
    parser = ToolParser(prog=f"mobilemamba {command}", description=_first_line(tools[command]))
    parser.add_function_arguments(tools[command], as_group=False, as_positional=True)
    several = [p.name for p in signature(tools[command]).parameters.values() if p.kind is p.VAR_POSITIONAL]
    for name in several:
        parser.add_argument(name, nargs="*")
    yes_or_no = [p.name for p in signature(tools[command]).parameters.values() if p.annotation in (bool, "bool")]
    options = parser.parse(switches(args[1:], yes_or_no)).as_dict()
    values = [value for name in several for value in options.pop(name)]
    tools[command](*values, **options)
    return None


def run() -> None:
    """The console script: :func:`main`, with the user's mistakes as one line and exit code 2."""
    _silence_advertising()
    keep_freed_memory()
    try:
        main()
    except MobileMambaError as error:
        _fail(str(user_error(error)), getattr(error, "exit_code", 2))
    except MisconfigurationException as error:  # Lightning's word for the user's mistakes: no such device, say
        _fail(str(error), 2)
    except KeyboardInterrupt as error:
        _fail("stopped; the same command goes on from here", error.args[0] if error.args else 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        _fail(f"{error.strerror}: {error.filename or Path.cwd()}; free some space or choose another folder", 1)


def _silence_advertising() -> None:
    """Leaves out what Lightning says at each start that its user can do nothing about; it has no switch for it."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search(r"\b(litlogger|litmodels)\b", record.getMessage()))


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"mobilemamba: error: {line}\n")
    sys.exit(code)


def _tools() -> dict[str, Callable[..., Any]]:
    from mobilemamba.tools import TOOLS

    return TOOLS


def _first_line(tool: Callable[..., Any]) -> str:
    return (tool.__doc__ or "").strip().partition("\n")[0]


def _help(tools: dict[str, Callable[..., Any]]) -> str:
    described = {**COMMANDS, **{name: _first_line(tool) for name, tool in tools.items()}}
    commands = "\n".join(f"  {name:10} {text}" for name, text in described.items())
    return f"""usage: mobilemamba COMMAND [options]

{commands}

mobilemamba fit                                            train on the built-in sample
mobilemamba fit --config experiments/ablation_xi.yaml      train every row of a table; again: go on
mobilemamba COMMAND --help                                 all options; those after --config win over the file"""
