"""The command line: Lightning's ``fit``, ``validate`` and ``test``, sweeps, and the tools."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import select
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemamba.allocator import keep_freed_memory
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.messages import user_error
from mobilemamba.signals import stop_on_signals
from mobilemamba_command import COMMANDS, end_without_reader, quick_answer, unknown_command

if TYPE_CHECKING:  # Lightning, which the tools do without
    from lightning.pytorch.cli import LightningCLI

    from mobilemamba.sweep import Row

__all__ = ["main", "plan", "run"]


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
    from mobilemamba.cli.lightning_cli import Planner
    from mobilemamba.sweep import Row

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
    answer = quick_answer(args)
    if answer is not None:
        sys.stdout.write(answer)
        return None
    command, *options = args
    if command not in COMMANDS:
        raise ConfigError(unknown_command(command))
    if function := COMMANDS[command].function:
        from mobilemamba.cli.tool import run_tool

        run_tool(command, function, options)
        return None
    from mobilemamba.cli.help import print_help
    from mobilemamba.cli.lightning_cli import MobileMambaCLI
    from mobilemamba.cli.mistakes import as_user_errors

    if print_help(command, options):
        return None
    options = ["--help" if option == "--help-all" else option for option in options]
    with contextlib.ExitStack() as resources, as_user_errors(options):
        return MobileMambaCLI([command, *options], resources)


def run() -> None:
    """The console script: :func:`main`, with the user's mistakes as one line and exit code 2."""
    _silence_advertising()
    keep_freed_memory()
    try:
        with stop_on_signals():
            main()
            sys.stdout.flush()
    except MobileMambaError as error:
        _fail(str(user_error(error)), getattr(error, "exit_code", 2))
    except KeyboardInterrupt as error:
        _stopped(error)
    except SystemExit as error:  # Lightning makes one of Ctrl-C, and rich of a pipe that nobody reads
        if isinstance(error.__context__, KeyboardInterrupt):
            _stopped(error.__context__)
        if isinstance(error.__context__, BrokenPipeError):
            end_without_reader()
        raise
    except BrokenPipeError:
        if not _has_no_reader():  # then it is another pipe, and a bug
            raise
        end_without_reader()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise
        remedy = "free some space or choose another folder"
        if error.errno in (errno.EACCES, errno.EROFS):
            remedy = "choose a folder that you may write to, or have its permissions changed"
        _fail(f"{error.strerror}: {error.filename or Path.cwd()}; {remedy}", 1)


def _silence_advertising() -> None:
    """Leaves out what Lightning says at each start that its user can do nothing about; it has no switch for it."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search(r"\b(litlogger|litmodels)\b", record.getMessage()))


def _has_no_reader() -> bool:
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # an error is reported even so
    return bool(pipe.poll(0))


def _stopped(error: KeyboardInterrupt) -> None:
    """Ends a command that a signal has stopped, with what its arguments say: the code, and how to go on."""
    code, *hints = error.args or (130,)
    _fail("; ".join(["stopped", *hints]), code)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    sys.stderr.write(f"mobilemamba: error: {line}\n")
    sys.exit(code)
