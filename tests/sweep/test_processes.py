"""Kills and signals, with real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilemamba.files import read_json
from mobilemamba.sweep import row
from mobilemamba_command import main, run
from tests.sweep.conftest import fake_command

pytestmark = pytest.mark.slow
Write = Callable[..., list[str]]
FORK = multiprocessing.get_context("fork")


def _sweep(options: list[str], faked: bool) -> None:
    """The command line in a fork of the tests' process, which spares it the seconds to import everything."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background has ignored
    with Path("said.txt").open("ab") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    sys.argv = ["mobilemamba", "fit", *options]
    if faked:
        row._command = fake_command
    run()


class Sweep:
    """A process of a sweep."""

    def __init__(self, options: list[str], faked: bool = True) -> None:
        Path("said.txt").unlink(missing_ok=True)
        self.process = FORK.Process(target=_sweep, args=(options, faked))
        self.process.start()

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive() or time.monotonic() > end:
                pytest.fail(self.ends())
            time.sleep(0.05)

    def ends(self, seconds: float = 60) -> str:
        """What it has said."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return Path("said.txt").read_text()


Start = Callable[..., Sweep]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Sweep] = []

    def new(*args: Any, **kwargs: Any) -> Sweep:
        started.append(Sweep(*args, **kwargs))
        return started[-1]

    yield new
    for sweep in started:
        sweep.ends(0)


def test_a_signal_stops_the_rows_and_the_same_command_goes_on(
    write: Write, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = write({"a": {"model.lr": 0.1}, "slow": {"model.lr": 0.2}, "bb": {"model.lr": 0.3}})
    starts = Path("runs/table/slow/starts")
    for number in (signal.SIGINT, signal.SIGTERM):
        starts.unlink(missing_ok=True)
        sweep = start(options)
        sweep.wait_for(starts.exists)
        os.kill(sweep.process.pid, number)
        said = sweep.ends()
        assert sweep.process.exitcode == 128 + number
        assert said.strip().endswith("mobilemamba: error: stopped; the same command goes on from here")
        assert "Traceback" not in said
        assert "| stopped |" in Path("runs/table/results.md").read_text()
        assert not Path("runs/table/bb/starts").exists()
    Path("runs/go").touch()
    monkeypatch.setattr(row, "_command", fake_command)
    main(["fit", *options])
    assert Path("runs/table/a/starts").read_text().count("\n") == 1
    assert Path("runs/table/bb/results.json").exists()


def test_a_killed_sweep_is_taken_up_without_running_a_row_twice(write: Write, start: Start) -> None:
    options = write({"slow": {"model.lr": 0.2}, "bb": {"model.lr": 0.3}})
    sweep = start(options)
    sweep.wait_for(Path("runs/table/slow/starts").exists)
    sweep.ends(0)
    again = start(options)
    again.wait_for(lambda: "running" in _read("runs/table/results.md"))
    time.sleep(1)
    Path("runs/go").touch()
    said = again.ends()
    assert again.process.exitcode == 0, said
    assert "still being trained by a process of an earlier command" in said
    assert Path("runs/table/slow/starts").read_text().count("\n") == 1


def test_a_real_row_killed_in_its_training_goes_on_from_its_checkpoint(write: Write, start: Start) -> None:
    options = [*write({"a": {"model.lr": 0.01}}), "--trainer.max_epochs", "8", "--table_size", "null"]
    sweep = start(options, faked=False)
    sweep.wait_for(lambda: read_json(Path("runs/table/a/progress.json")).get("epoch", 0) >= 2)
    command = ["pgrep", "-P", str(sweep.process.pid)]
    pids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert pids
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    said = sweep.ends()
    assert sweep.process.exitcode == 1, said
    assert "a: killed by SIGKILL" in said
    main(["fit", *options])
    log = Path("runs/table/a/log.txt").read_text()
    assert "Restored all states" in log
    results = read_json(Path("runs/table/a/results.json"))
    assert (results["epochs"], results["resumes"]) == (8, 1)
    assert len(list(Path("runs/table/a/csv").iterdir())) == 2, "the metrics from before are kept"
    kept = sorted(path.name for path in Path("runs/table/a/checkpoints").iterdir())
    assert kept == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
