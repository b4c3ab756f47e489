"""What the launchers share: their interface, and a row's way through its attempts, here or on another machine."""

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

#: ``("started", run_dir, None)``, ``("done", run_dir, None or the reason why not)``, ``("said", ., a line for the
#: user)``, and ``("tick", ., None)`` about every second.
Event = tuple[str, Path, str | None]
#: (run_dirs, fit) -> events. Runs ``fit`` for every folder; closing the iterator stops what it started.
Launch = Callable[[list[Path], FitRow], Generator[Event]]


def require(package: str) -> Any:
    """Imports a launcher's package, which is the extra of the same requirements' name.

    Raises:
        ConfigError: If it is not installed.
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
    """Refuses rows that would train on several machines each, and GPUs that are named by their index."""
    nodes, devices = lookup(config, "trainer.num_nodes"), lookup(config, "trainer.devices")
    if isinstance(nodes, int) and nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes} with sweep.launcher={launcher}: it puts each row on one machine; leave it out"
        )
    if isinstance(devices, list):
        raise ConfigError(
            f"trainer.devices={devices} with sweep.launcher={launcher}: give their number, e.g. {len(devices)}"
        )


def try_row(fit: FitRow, run_dir: Path, environment: dict[str, str], stop: threading.Event, retries: int) -> str | None:
    """Calls ``fit`` until the row is finished, at most ``1 + retries`` times.

    Returns:
        None if it is finished, otherwise the last reason why not.
    """
    reason: str | None = "stopped"
    for _ in range(1 + retries):
        if stop.is_set():
            break
        try:
            reason = fit(run_dir, environment, stop)
        except OSError as error:  # e.g. no space left for its log: this row's failure, not the sweep's
            reason = f"{error.strerror or error}: {error.filename or run_dir}"
        if reason is None:
            break
    return reason


def try_row_elsewhere(
    fit: FitRow, run_dir: Path, folder: Path, retries: int, shares: tuple[str, ...] = ()
) -> str | None:
    """As :func:`try_row`, for a process on another machine that sees the same files.

    Args:
        fit: Runs the row.
        run_dir: Its folder, as the sweep names it.
        folder: The sweep's current directory, which paths of the configuration may start from.
        retries: How often it is tried again.
        shares: Environment variables that say which part of the machine is the row's.
    """
    if not (folder / run_dir / "run.yaml").exists():
        return f"{socket.gethostname()} does not see {folder / run_dir}; use a folder that all machines share"
    os.chdir(folder)
    environment = {name: os.environ[name] for name in shares if os.environ.get(name)}
    return try_row(fit, run_dir, environment, threading.Event(), retries)
