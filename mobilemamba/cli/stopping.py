"""Stopping of a command by signals, and the hint on how to continue."""

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
    """Lets a second Ctrl-C end a training that is slow to stop; Lightning itself ignores all but the first."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the default handling of Ctrl-C, which Lightning has disabled."""
        if isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def add_hint_to_continue(cli: Any, kind: type[BaseException] | None, error: BaseException | None, *_: Any) -> None:
    """Adds a hint on how to continue to the exception of a signal: ``KeyboardInterrupt(exit code, hint)``.

    Called with the exception that ends a command, if any.
    """
    stop = error.__context__ if isinstance(error, SystemExit) else error  # Lightning turns it into an exit
    if not isinstance(stop, KeyboardInterrupt):
        return
    code = stop.args[0] if stop.args else 130
    hint = hint_to_continue(cli)
    raise KeyboardInterrupt(code, *([hint] if hint else [])) from None


def hint_to_continue(cli: Any) -> str:
    """Returns a hint on how to continue a stopped command; empty if there is nothing to continue."""
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
