"""The local launcher: runs rows as processes on this machine, ``jobs`` at a time."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from mobilemamba.cpus import usable_cpus
from mobilemamba.errors import ConfigError
from mobilemamba.sweep.launchers.base import TICK_SECONDS, Event, Launch, gpus_of_row, try_row
from mobilemamba.sweep.row import FitRow
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config, lookup


def launcher(sweep: Sweep, config: Config) -> Launch:
    """Returns a function that starts rows here, one at a time in each share of the machine; Ctrl-C stops them.

    Raises:
        ConfigError: If there are fewer GPUs than ``sweep.jobs`` rows need.
    """
    return functools.partial(_launch, environments=environments(sweep.jobs, config), retries=sweep.retries)


def _launch(run_dirs: list[Path], fit: FitRow, environments: list[dict[str, str]], retries: int) -> Generator[Event]:
    stop = threading.Event()
    slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    started: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for environment in environments:
        slots.put(environment)

    def work(run_dir: Path) -> str | None:
        slot = slots.get()
        started.put(run_dir)
        try:
            return try_row(fit, run_dir, slot, stop, retries)
        finally:
            slots.put(slot)

    pool = ThreadPoolExecutor(len(environments), thread_name_prefix="row")
    try:
        pending: dict[Future[str | None], Path] = {pool.submit(work, run_dir): run_dir for run_dir in run_dirs}
        while pending:
            done, _ = wait(pending, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
            while not started.empty():
                yield "started", started.get(), None
            for future in done:
                yield "done", pending.pop(future), future.result()
            yield "tick", Path(), None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def environments(jobs: int, config: Config) -> list[dict[str, str]]:
    """Returns environment variables for each of ``jobs`` simultaneous rows that define its share of cores and GPUs.

    A single row gets no variables and thus the whole machine.

    Raises:
        ConfigError: If the rows name GPUs by index, or need more than there are.
    """
    if jobs == 1:
        return [{}]
    cores = usable_cpus()
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores) // jobs)
    share = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if lookup(config, "trainer.accelerator") == "cpu" or not torch.cuda.is_available():
        return [dict(share) for _ in range(jobs)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    devices = lookup(config, "trainer.devices")
    if isinstance(devices, list):
        raise ConfigError(f"trainer.devices={devices} with sweep.jobs={jobs}: give their number, e.g. {len(devices)}")
    size = gpus_of_row(config)
    groups = [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)]
    if len(groups) < jobs:
        raise ConfigError(
            f"sweep.jobs={jobs} rows of {size} GPU(s) each need {jobs * size}, there are {len(gpus)}; "
            f"use --sweep.jobs {max(1, len(groups))}"
        )
    return [{**share, "CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups[:jobs]]
