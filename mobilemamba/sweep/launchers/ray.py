"""The Ray launcher: runs rows as tasks of a Ray cluster. A row whose machine is lost continues on another one."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.launchers.base import (
    TICK_SECONDS,
    Event,
    Launch,
    check_one_machine,
    gpus_of_row,
    require,
    try_row_elsewhere,
)
from mobilemamba.sweep.row import STOP_SECONDS, FitRow
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config, lookup

#: How many lost machines a row survives; limited, as a row may itself crash every machine it runs on.
LOSSES = 10
#: Variables that Ray sets for a task to define its share of the machine.
_SHARES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def launcher(sweep: Sweep, config: Config) -> Launch:
    """Returns a function that starts rows on the cluster at ``RAY_ADDRESS``, or else on this machine's cluster.

    If this machine belongs to no cluster, Ray is started on it. Each row takes 1 / ``sweep.jobs`` of a machine. All
    machines need this Python environment and the current folder.

    Raises:
        ConfigError: If Ray is not installed, or a row needs more than one machine.
    """
    require("ray")
    check_one_machine("ray", config)
    return functools.partial(_launch, sweep=sweep, config=config)


def _launch(run_dirs: list[Path], fit: FitRow, sweep: Sweep, config: Config) -> Generator[Event]:
    if not run_dirs:
        return
    ray = require("ray")
    with _connected(ray):
        share = share_of_machine(ray.nodes(), sweep.jobs, config)
        amounts = " and ".join(f"{amount} {name[4:-1].upper()}(s)" for name, amount in share.items())
        machines = sum(node["Alive"] for node in ray.nodes())
        yield "said", Path(), f"Ray cluster of {machines} machine(s); each row takes {amounts} of one"
        task = ray.remote(max_retries=LOSSES, **share)(try_row_elsewhere)
        shares = _SHARES if sweep.jobs > 1 else ()
        pending = {task.remote(fit, run_dir, Path.cwd(), sweep.retries, shares): run_dir for run_dir in run_dirs}
        try:
            while pending:
                done, _ = ray.wait(list(pending), timeout=TICK_SECONDS)
                for reference in done:
                    yield "done", pending.pop(reference), _result(ray, reference)
                yield "tick", Path(), None
        finally:
            for reference in pending:
                ray.cancel(reference)
            if pending:  # wait, so that no row outlives the connection
                ray.wait(list(pending), num_returns=len(pending), timeout=STOP_SECONDS)


def share_of_machine(nodes: list[dict[str, Any]], jobs: int, config: Config) -> dict[str, int]:
    """Returns the resources of one of ``jobs`` rows on the smallest machine that can run rows.

    Args:
        nodes: The cluster's machines, as returned by ``ray.nodes()``.
        jobs: Rows that run at the same time on a machine.
        config: Configuration of a row.

    Returns:
        ``num_cpus`` and, if rows use GPUs, ``num_gpus``.

    Raises:
        ConfigError: If the machines are too small.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise ConfigError("the Ray cluster has no machine with CPUs for rows; add one: ray start --address=HEAD:6379")
    kinds = ["CPU"]
    if lookup(config, "trainer.accelerator") != "cpu" and any(machine.get("GPU") for machine in machines):
        machines = [machine for machine in machines if machine.get("GPU")]
        kinds.append("GPU")
    needed = {"CPU": 1, "GPU": gpus_of_row(config)}
    share = {}
    for kind in kinds:
        there = int(min(machine[kind] for machine in machines))
        if there // jobs < needed[kind]:
            raise ConfigError(
                f"sweep.jobs={jobs} rows of {needed[kind]} {kind}(s) each need {jobs * needed[kind]} on a machine, the "
                f"Ray cluster's smallest has {there}; use --sweep.jobs {max(1, there // needed[kind])}"
            )
        share[f"num_{kind.lower()}s"] = there // jobs
    return share


def _result(ray: Any, reference: Any) -> str | None:
    try:
        reason: str | None = ray.get(reference)
    except ray.exceptions.RayError as error:  # the row's machines were lost too often, or lack this package
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"Ray: {lines[-1] if lines else type(error).__name__}"
    return reason


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connects to Ray while rows run; an existing connection is used and left open."""
    if ray.is_initialized():
        yield
        return
    _check_address(os.environ.get("RAY_ADDRESS", "auto"))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise a cluster started here sends usage statistics
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Ray does not start or connect: {error}; see RAY_ADDRESS") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would end this process before the rows
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Checks that a server answers at HOST:PORT, as Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); give its head's address"
            ) from None
