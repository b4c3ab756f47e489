import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from mobilemamba.files import read_json
from mobilemamba.sweep import fit_row, row
from mobilemamba.sweep.record import state


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(row, "_command", lambda run_dir: [sys.executable, "-c", code, str(run_dir)])


def test_a_killed_row_says_so(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    assert fit_row(run_dir) == "killed by SIGKILL (out of memory?)"
    assert read_json(run_dir / "status.json")["status"] == "failed"


def test_a_row_that_was_running_when_all_was_killed_is_stopped(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(run_dir) == "waiting"
    (run_dir / "status.json").write_text('{"status": "running"}')
    assert state(run_dir) == "stopped"
    (run_dir / ".lock").touch()
    assert state(run_dir) == "stopped"
    monkeypatch.setattr(row, "FileLock", lambda *_, **__: (_ for _ in ()).throw(PermissionError))
    assert state(run_dir) == "running", "in another user's folder, for all that can be known"


def test_no_foreign_ranks_and_seeds_reach_a_row(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "PL_GLOBAL_SEED"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    child(monkeypatch, "import os, sys, json; json.dump(dict(os.environ), open(sys.argv[1] + '/results.json', 'w'))")
    assert fit_row(run_dir, {"CUDA_VISIBLE_DEVICES": "3"}) is None
    seen = read_json(run_dir / "results.json")
    assert not {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "PL_GLOBAL_SEED"} & set(seen)
    assert (seen["SLURM_JOB_NAME"], seen["CUDA_VISIBLE_DEVICES"]) == ("interactive", "3")


def test_a_row_waits_for_the_process_that_still_trains_it(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child(monkeypatch, "raise SystemExit('started a second time')")
    results: list[str | None] = []
    with FileLock(run_dir / ".lock"):
        thread = threading.Thread(target=lambda: results.append(fit_row(run_dir)))
        thread.start()
        time.sleep(0.6)
        assert thread.is_alive()
        assert state(run_dir) == "running"
        (run_dir / "results.json").write_text('{"top1": 1}')
    thread.join(10)
    assert results == [None]
    assert state(run_dir) == "finished"
    assert not (run_dir / "log.txt").exists()


def test_a_row_that_such_a_process_takes_first_is_not_failed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has been started just before its sweep was killed, and locks the folder after the same command looked."""
    code = """
import pathlib, sys
log, results = (pathlib.Path(sys.argv[1], name) for name in ("log.txt", "results.json"))
if "training" not in log.read_text():
    sys.exit("mobilemamba: error: another process is training in a; wait for it")
results.write_text('{"top1": 1}')
"""
    child(monkeypatch, code)
    assert fit_row(run_dir) is None
    assert read_json(run_dir / "status.json")["attempts"] == 2


def test_stop_ends_the_process_and_what_it_started(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import subprocess, sys, time
worker = subprocess.Popen(["sleep", "60"])
open(sys.argv[1] + "/pid", "w").write(str(worker.pid))
open(sys.argv[1] + "/ready", "w").close()
time.sleep(60)"""
    child(monkeypatch, code)
    stop = threading.Event()

    def stop_when_ready() -> None:
        while not (run_dir / "ready").exists():
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_when_ready).start()
    assert fit_row(run_dir, stop=stop) == "stopped"
    assert read_json(run_dir / "status.json")["status"] == "stopped"
    time.sleep(0.2)
    worker = int((run_dir / "pid").read_text())
    state = Path(f"/proc/{worker}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z" or os.name != "posix"


def test_a_row_goes_on_from_a_checkpoint_that_can_be_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run_dir / "checkpoints"
    assert "--ckpt_path" not in row._command(run_dir)
    kept.mkdir()
    loop = {"epoch_progress": {"current": {"ready": 0}}, "epoch_loop.batch_progress": {"current": {"ready": 0}}}
    content = {"state_dict": {}, "optimizer_states": [], "lr_schedulers": [], "loops": {"fit_loop": loop}}
    content |= {"callbacks": {}, "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6"}
    torch.save(content, kept / "last.ckpt")
    assert row._command(run_dir)[-2:] == ["--ckpt_path", "last"]
    shutil.copy(kept / "last.ckpt", kept / "last-former.ckpt")
    whole = (kept / "last.ckpt").read_bytes()
    (kept / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    assert row._command(run_dir)[-2:] == ["--ckpt_path", "last"], "the former one is whole"
    (kept / "last-former.ckpt").rename(kept / "best.ckpt")
    child(monkeypatch, "import os, sys; sys.exit(os.path.exists(sys.argv[1] + '/checkpoints'))")
    assert fit_row(run_dir) == "ended before its last epoch, exit code 0"
    assert "attempt 1, afresh: no checkpoint can be read" in (run_dir / "log.txt").read_text()
    assert (run_dir / "checkpoints-unreadable/best.ckpt").exists()
