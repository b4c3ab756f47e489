"""Common parts of the launchers: their interface, and the attempts to run a row, here or on another machine."""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.row import FitRow
from mobilemamba.sweep.settings import Config, lookup

#: ``("started", run_dir, None)``; ``("done", run_dir, None if finished, else the reason)``; ``("said", ., a line for
#: the user)``; ``("tick", ., None)`` every :data:`TICK_SECONDS`.
Event = tuple[str, Path, str | None]
TICK_SECONDS = 1.0
#: (run_dirs, fit) -> events. Runs ``fit`` for every folder; closing the iterator stops the rows that it started.
Launch = Callable[[list[Path], FitRow], Generator[Event]]


def require(package: str) -> Any:
    """Imports the package that a launcher needs.

    Raises:
        ConfigError: If it is not installed; names the extra to install.
    """
    extra = {"submitit": "slurm"}.get(package, package)
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"sweep.launcher={extra} needs the package {package}, which is not installed; "
            f"pip install 'mobilemamba[{extra}]'"
        ) from None


def check_one_machine(launcher: str, config: Config) -> None:
    """Raises a ConfigError for rows that need several machines each, and for GPUs given by index."""
    nodes, devices = lookup(config, "trainer.num_nodes"), lookup(config, "trainer.devices")
    if isinstance(nodes, int) and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} with sweep.launcher={launcher}: it puts each row on one machine; leave it out"
        )
    if isinstance(devices, list):
        raise ConfigError(
            f"trainer.devices={devices} with sweep.launcher={launcher}: give their number, e.g. {len(devices)}"
        )


def gpus_of_row(config: Config) -> int:
    """Returns how many GPUs a row takes where it takes any; one for ``auto``, which would give it all of a machine."""
    devices = str(lookup(config, "trainer.devices"))
    return int(devices) if devices.isdigit() else 1


def try_row(fit: FitRow, run_dir: Path, environment: dict[str, str], stop: threading.Event, retries: int) -> str | None:
    """Calls ``fit`` until the row is finished, at most ``1 + retries`` times.

    Returns:
        None if it is finished, otherwise the reason why the last attempt failed.
    """
    reason: str | None = "stopped"
    for _ in range(1 + retries):
        if stop.is_set():
            break
        try:
            reason = fit(run_dir, environment, stop)
        except OSError as error:  # e.g. no space left for the log: only this row has failed, not the sweep
            reason = f"{error.strerror or error}: {error.filename or run_dir}"
        if reason is None:
            break
    return reason


def try_row_elsewhere(
    fit: FitRow, run_dir: Path, folder: Path, retries: int, shares: tuple[str, ...] = ()
) -> str | None:
    """Does the same as :func:`try_row` in a process on another machine that shares the file system.

    Args:
        fit: Runs the row.
        run_dir: The row's folder, as the sweep names it.
        folder: The sweep's current directory, to which paths in the configuration may be relative.
        retries: How often a failed row is tried again.
        shares: Environment variables that define the row's share of the machine.
    """
    if not (folder / run_dir / "run.yaml").exists():
        return f"{socket.gethostname()} does not see {folder / run_dir}; use a folder that all machines share"
    os.chdir(folder)
    environment = {name: os.environ[name] for name in shares if os.environ.get(name)}
    return try_row(fit, run_dir, environment, threading.Event(), retries)
