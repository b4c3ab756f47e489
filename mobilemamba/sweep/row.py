"""A row of a sweep: its settings, its state on disk, and ``fit_row``, which trains it in a separate process.

A row is finished if and only if ``results.json`` exists, which is written last and atomically. Exit codes are not
reliable: a run that stops early after SIGTERM exits with 0.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mobilemamba.files import read_json, write_json
from mobilemamba.scores import Score
from mobilemamba.sweep.settings import Config
from mobilemamba.training.checkpoint_files import FOLDER, can_resume, checkpoints_newest_first

#: (run_dir, environment, stop) -> None if finished, else the reason.
FitRow = Callable[[Path, dict[str, str], threading.Event], str | None]

#: Seconds that a row may take to stop after SIGTERM before it is killed.
STOP_SECONDS = 20.0
POLL_SECONDS = 0.2
#: Beginning of the errors with which a training refuses a folder because of a process that trains or has trained in it.
BY_ANOTHER = "another process"

#: Variables that a distributed or seeded run in this process leaves in the environment; a child must not inherit them.
_FOREIGN_VARIABLES = {
    *("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED"),
}


@dataclass
class Row:
    """One run of a sweep.

    Attributes:
        name: Name of the row and of its folder.
        run_dir: Folder with all files of the row.
        config: The whole resolved configuration, as in ``run.yaml``.
        values: Each setting that any row of the sweep changes -> its resolved value in this row.
        paper: The paper's numbers.
        note: What is inferred in this row; empty if nothing is.
        group: The name without the grid's seed, which rows that differ only in their seed share. By default the name.
        scores: Scores of its task, the headline first.
        fused_of: Name of the row whose network this row evaluates with folded norms; None for a row that is trained.
    """

    name: str
    run_dir: Path
    config: Config
    values: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    note: str = ""
    group: str = ""
    scores: tuple[Score, ...] = ()
    fused_of: str | None = None

    def __post_init__(self) -> None:
        self.group = self.group or self.name


def is_finished(run_dir: Path) -> bool:
    """Whether the row, or any other run in this folder, is complete."""
    return bool(read_json(run_dir / "results.json"))


def has_begun(run_dir: Path) -> bool:
    """Whether something depends on the row's settings: results, a checkpoint, or a process that may be training."""
    running = read_json(run_dir / "status.json").get("status") == "running"
    return running or is_finished(run_dir) or bool(checkpoints_newest_first(run_dir)) or is_locked(run_dir)


def is_locked(run_dir: Path) -> bool:
    """Whether a process is training in the folder at this moment."""
    if not (run_dir / ".lock").exists():
        return False
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that this user may only read, where its last word has to do
        return read_json(run_dir / "status.json").get("status") == "running"


def fit_row(
    run_dir: Path, environment: Mapping[str, str] | None = None, stop: threading.Event | None = None
) -> str | None:
    """Trains the row of a run folder to its end, from its last checkpoint if it has one.

    Waits while another process, which outlived its sweep, trains in the folder, so that nothing runs twice.

    Args:
        run_dir: Folder with ``run.yaml``.
        environment: Variables set for the row, e.g. which GPU it may use.
        stop: When set, the row's process is asked to end, and killed if it does not.

    Returns:
        None if the row is finished, otherwise the reason in one line, which is also in ``status.json``.

    Raises:
        OSError: If the run folder cannot be written.
    """
    stop = stop or threading.Event()
    while is_locked(run_dir):
        if stop.wait(POLL_SECONDS):
            return "stopped while another process trained it"
    if is_finished(run_dir):
        return None

    status = read_json(run_dir / "status.json")
    status = {
        "status": "running",
        "environment": dict(environment or {}),
        "attempts": status.get("attempts", 0) + 1,
    }
    _write_status(run_dir, status)
    title = f"attempt {status['attempts']}"
    if aside := _set_aside_checkpoints(run_dir):
        title += f", afresh: no checkpoint can be read, what there was is now in {aside}"
    ending = run_logged(_command(run_dir), run_dir / "log.txt", title, environment, stop)
    if is_finished(run_dir):
        _write_status(run_dir, {**status, "status": "finished"})
        return None
    if ending.startswith(BY_ANOTHER) and not stop.is_set():  # it outlived its sweep, and had not locked the folder yet
        return fit_row(run_dir, environment, stop)
    reason = "stopped" if stop.is_set() else ending
    state = "stopped" if stop.is_set() else "failed"
    with contextlib.suppress(OSError):  # the reason is returned anyway, and it is often that the disk is full
        _write_status(run_dir, {**status, "status": state, "reason": reason})
    return reason


def run_logged(
    command: list[str], log_path: Path, title: str, environment: Mapping[str, str] | None, stop: threading.Event
) -> str:
    """Runs a command to its end, in a new session, with its output appended to a file.

    Args:
        command: Program and arguments.
        log_path: File for standard output and error, after a line with the title and the time.
        title: Description of the command.
        environment: Variables set for the process.
        stop: When set, the process is asked to end, and killed if it does not.

    Returns:
        How it ended, in one line, as an exit code alone does not tell whether it succeeded.

    Raises:
        OSError: If the log cannot be written.
    """
    with log_path.open("ab") as log:
        log.write(f"--- {title}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_child_environment(environment or {}),
            start_new_session=True,  # Ctrl-C reaches only the sweep, which then stops its rows in order
        )
    try:
        code = _wait(process, stop)
    finally:
        _kill_group(process)
    return _reason(code, log_path, start)


def _command(run_dir: Path) -> list[str]:
    command = [sys.executable, "-m", "mobilemamba_command", "fit", "--config", str(run_dir / "run.yaml")]
    command += ["--trainer.default_root_dir", str(run_dir)]  # as the sweep's folder may have been moved since
    return [*command, "--ckpt_path", "last"] if can_resume(run_dir) else command


def _set_aside_checkpoints(run_dir: Path) -> Path | None:
    """Renames ``checkpoints`` if no training can resume from it, as a new training refuses to overwrite it."""
    folder, aside = run_dir / FOLDER, run_dir / f"{FOLDER}-unreadable"
    if not folder.exists() or can_resume(run_dir):
        return None
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def _write_status(run_dir: Path, status: dict[str, Any]) -> None:
    write_json(run_dir / "status.json", status)


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _FOREIGN_VARIABLES}
    if any(key.startswith("SLURM_") for key in inherited):
        inherited["SLURM_JOB_NAME"] = "interactive"  # otherwise Lightning uses the allocation's ranks for the row
    return {**inherited, "PYTHONUNBUFFERED": "1", **environment}


def _wait(process: subprocess.Popen[bytes], stop: threading.Event) -> int:
    while process.poll() is None:
        if stop.wait(POLL_SECONDS):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            break
    _kill_group(process)
    return process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills processes that the row's process left behind: ranks of a distributed run, data loading workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(code: int, log_path: Path, start: int) -> str:
    with log_path.open("rb") as log:
        log.seek(start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    # Prefer our own one-line errors, then the last line of a traceback, then the last line of output.
    for pattern in (r"mobilemamba: error: (.*)", r"((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)"):
        for line in reversed(lines):
            if found := re.match(pattern, line):
                return found[1]
    last = f": {lines[-1]}" if lines else ""
    return f"ended before its last epoch, exit code {code}{last}"
