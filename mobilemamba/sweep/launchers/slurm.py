"""The SLURM launcher: submits rows as the jobs of an array, which stay queued if the sweep's own process ends."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json, write_text_atomic
from mobilemamba.sweep.launchers.base import (
    TICK_SECONDS,
    Event,
    Launch,
    check_one_machine,
    gpus_of_row,
    require,
    try_row_elsewhere,
)
from mobilemamba.sweep.row import FitRow
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config, lookup

#: Folder with submitit's scripts, logs and results, beside the rows' folders.
FOLDER = "slurm"
#: File in a row's folder with its last job, so that the same command waits for it instead of submitting it again.
JOB_FILE = "slurm.json"
#: How often a row that exceeds its time limit is queued again, to continue from its last checkpoint.
TIMEOUTS = 20


def launcher(sweep: Sweep, config: Config) -> Launch:
    """Returns a function that submits rows with ``sbatch`` and the options ``sweep.slurm``.

    Raises:
        ConfigError: If submitit or SLURM is missing, an option is unknown, or a row needs more than one machine.
    """
    check_one_machine("slurm", config)
    if sweep.jobs > 1:
        raise ConfigError(
            f"sweep.jobs={sweep.jobs} with sweep.launcher=slurm: each row is a job of its own; leave it out, or limit "
            f"them by slurm_array_parallelism: {sweep.jobs} in sweep.slurm"
        )
    _executor(Path(FOLDER), sweep, config)
    return functools.partial(_launch, sweep=sweep, config=config)


def _executor(folder: Path, sweep: Sweep, config: Config) -> Any:
    """Returns submitit's executor with all options; submits and writes nothing yet."""
    submitit = require("submitit")
    if not {"timeout_min", "slurm_time"} & set(sweep.slurm):  # submitit's default is five minutes
        raise ConfigError(
            "sweep.slurm has no time limit; give one that the partition allows, in minutes, e.g. --sweep.slurm "
            "'{timeout_min: 1440}': a row that needs longer is queued again and goes on"
        )
    if fixed := {"nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node"} & set(sweep.slurm):
        raise ConfigError(f"sweep.slurm: {min(fixed)} is always 1, each row trains on one machine; leave it out")
    ours: dict[str, Any] = {"name": "mobilemamba", "nodes": 1, "tasks_per_node": 1}
    if lookup(config, "trainer.accelerator") != "cpu":
        ours["gpus_per_node"] = gpus_of_row(config)
    workers = lookup(config, "data.num_workers")
    if workers is not None:
        ours["cpus_per_task"] = workers + 1
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(**{**ours, **sweep.slurm})
    except RuntimeError as error:
        raise ConfigError(f"sweep.launcher=slurm: {error} Run it where sbatch and srun are") from error
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"sweep.slurm: {str(error).splitlines()[0]}") from error
    return executor


@dataclass(frozen=True)
class _Job:
    """Function that runs on the machine chosen by SLURM; submitit calls ``checkpoint`` at the time limit."""

    fit: FitRow
    folder: Path
    retries: int

    def __call__(self, run_dir: Path) -> str | None:
        return try_row_elsewhere(self.fit, run_dir, self.folder, self.retries)

    def checkpoint(self, run_dir: Path) -> Any:
        return require("submitit").helpers.DelayedSubmission(self, run_dir)


def _launch(run_dirs: list[Path], fit: FitRow, sweep: Sweep, config: Config) -> Generator[Event]:
    pending = {run_dir: job for run_dir, job in _former_jobs(run_dirs, fit).items() if not job.done()}
    for run_dir, job in pending.items():
        lost = f"if the queue has lost it, delete {run_dir / JOB_FILE}"
        yield "said", Path(), f"{run_dir.name}: SLURM job {job.job_id} of an earlier command is waited for; {lost}"
    if new := [run_dir for run_dir in run_dirs if run_dir not in pending]:
        jobs = _submit(new, _Job(fit, Path.cwd(), sweep.retries), _executor(new[0].parent / FOLDER, sweep, config))
        pending |= dict(zip(new, jobs, strict=True))
        number = jobs[0].job_id.partition("_")[0]
        ending = f"the same command waits for them, scancel {number} ends them"
        yield "said", Path(), f"SLURM job {number}: {len(new)} row(s) in the queue, where Ctrl-C leaves them; {ending}"
    while pending:
        for run_dir, job in list(pending.items()):
            if job.done():
                del pending[run_dir]
                yield "done", run_dir, _result(job)
        yield "tick", Path(), None
        time.sleep(TICK_SECONDS if pending else 0)


def _former_jobs(run_dirs: list[Path], fit: FitRow) -> dict[Path, Any]:
    """Returns the last jobs that did the same work on these rows."""
    records = {run_dir: read_json(run_dir / JOB_FILE) for run_dir in run_dirs}
    return {
        run_dir: require("submitit").SlurmJob(run_dir.parent / FOLDER, record["job"])
        for run_dir, record in records.items()
        if record.get("work") == _description(fit)
    }


def _description(fit: FitRow) -> str:
    return str(fit.args) if isinstance(fit, functools.partial) else fit.__name__


def _submit(run_dirs: list[Path], work: _Job, executor: Any) -> list[Any]:
    try:
        jobs: list[Any] = executor.map_array(work, run_dirs)
    except require("submitit").core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"sbatch refused the rows: {lines[-1]}; mend sweep.slurm") from error
    for run_dir, job in zip(run_dirs, jobs, strict=True):
        record = {"job": job.job_id, "work": _description(work.fit)}
        write_text_atomic(run_dir / JOB_FILE, json.dumps(record) + "\n")
    return jobs


def _result(job: Any) -> str | None:
    if job.exception() is None:
        reason: str | None = job.result()
        return reason
    return f"SLURM job {job.job_id} ended early ({job.state}); see {job.paths.stderr}"
