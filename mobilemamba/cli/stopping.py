"""What a training that a signal has stopped tells its user: the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mobilemamba.cli.options import read_options
from mobilemamba.training.checkpoint_files import FOLDER, LAST


class EndOnSecondInterrupt(Callback):
    """Lets Ctrl-C end a training that is slow to stop; Lightning ignores every one but the first."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes Lightning's choice back."""
        if isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def name_the_way_on(cli: Any, kind: type[BaseException] | None, error: BaseException | None, *_: Any) -> None:
    """Adds to what a signal raised how to go on from there, as ``KeyboardInterrupt(exit code, hint)``.

    Called with the exception that ends a command, if any.
    """
    stop = error.__context__ if isinstance(error, SystemExit) else error  # Lightning makes an exit of it
    if not isinstance(stop, KeyboardInterrupt):
        return
    code = stop.args[0] if stop.args else 130
    hint = way_on(cli)
    raise KeyboardInterrupt(code, *([hint] if hint else [])) from None


def way_on(cli: Any) -> str:
    """How to go on with a command that was stopped; blank where there is nothing to go on with."""
    command, *options = cli.typed_args
    if os.environ.get("LOCAL_RANK", "0") != "0" or getattr(cli, "config", None) is None:
        return ""
    if cli.rows is not None:
        return "the same command goes on from here"
    if command != "fit":
        return ""
    root = Path(cli.config.fit.trainer.default_root_dir or "")
    if not (root / FOLDER / LAST).exists():
        return "no epoch was finished, so the same command starts again"
    kept = [arg for option in read_options(options) if option.name != "--ckpt_path" for arg in option.given]
    return f"go on with: {shlex.join(['mobilemamba', 'fit', *kept, '--ckpt_path', 'last'])}"
