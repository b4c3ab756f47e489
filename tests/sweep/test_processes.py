"""Kills and signals, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mobilemamba.files import read_json
from mobilemamba.sweep import row
from mobilemamba_command import main
from tests.sweep.run_faked import fake_command

pytestmark = pytest.mark.slow
Write = Callable[..., list[str]]
FAKED = str(Path(__file__).with_name("run_faked.py"))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def popen(*command: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Also where the tests themselves run in the background of a shell, which has Ctrl-C ignored.
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        started.append(subprocess.Popen([sys.executable, *command], **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.05)


def test_a_signal_stops_the_rows_and_the_same_command_goes_on(
    write: Write, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = write({"a": {"model.lr": 0.1}, "slow": {"model.lr": 0.2}, "bb": {"model.lr": 0.3}})
    starts = Path("runs/table/slow/starts")
    for number in (signal.SIGINT, signal.SIGTERM):
        starts.unlink(missing_ok=True)
        sweep = start(FAKED, "fit", *options)
        wait_for(starts.exists, sweep)
        sweep.send_signal(number)
        said, _ = sweep.communicate(timeout=60)
        assert sweep.returncode == 128 + number
        assert said.strip().endswith("mobilemamba: error: stopped; the same command goes on from here")
        assert "Traceback" not in said
        assert "| stopped" in Path("runs/table/results.md").read_text()
        assert not Path("runs/table/bb/starts").exists()
    Path("runs/go").touch()
    monkeypatch.setattr(row, "_command", fake_command)
    main(["fit", *options])
    assert Path("runs/table/a/starts").read_text().count("\n") == 1
    assert Path("runs/table/bb/results.json").exists()


def test_a_killed_sweep_is_taken_up_without_running_a_row_twice(
    write: Write, start: Callable[..., subprocess.Popen[str]]
) -> None:
    options = write({"slow": {"model.lr": 0.2}, "bb": {"model.lr": 0.3}})
    sweep = start(FAKED, "fit", *options)
    wait_for(Path("runs/table/slow/starts").exists, sweep)
    sweep.kill()
    again = start(FAKED, "fit", *options)
    wait_for(lambda: "running" in _read("runs/table/results.md"), again)
    time.sleep(1)
    Path("runs/go").touch()
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert "still being trained by a process of an earlier command" in said
    assert Path("runs/table/slow/starts").read_text().count("\n") == 1


def test_a_real_row_killed_in_its_training_goes_on_from_its_checkpoint(
    write: Write, start: Callable[..., subprocess.Popen[str]]
) -> None:
    options = [*write({"a": {"model.lr": 0.01}}), "--trainer.max_epochs", "8", "--table_size", "null"]
    sweep = start("-m", "mobilemamba", "fit", *options)
    wait_for(lambda: read_json(Path("runs/table/a/progress.json")).get("epoch", 0) >= 2, sweep)
    pids = subprocess.run(["pgrep", "-P", str(sweep.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert pids
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 1, said
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
