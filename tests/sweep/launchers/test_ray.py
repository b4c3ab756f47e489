"""Rows on a Ray cluster of two machines, which this one stands in for."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilemamba.errors import ConfigError
from mobilemamba.files import read_json
from mobilemamba.sweep import Sweep
from mobilemamba.sweep.launchers import launcher
from mobilemamba.sweep.launchers.ray import share_of_machine
from mobilemamba_command import main

SWEEP = Sweep(rows={"a": {}}, launcher="ray")


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"memory": 1e9, **resources}}


def test_a_row_takes_its_part_of_the_smallest_machine_that_fits() -> None:
    login, gone = node(), node(alive=False, CPU=2, GPU=1)
    nodes = [login, gone, node(CPU=8), node(CPU=64, GPU=8), node(CPU=48, GPU=4)]
    auto: dict[str, Any] = {"trainer": {"accelerator": "auto", "devices": "auto"}}
    cpu = {"trainer": {"accelerator": "cpu"}}
    assert share_of_machine(nodes, 1, auto) == {"num_cpus": 48, "num_gpus": 4}
    assert share_of_machine(nodes, 4, auto) == {"num_cpus": 12, "num_gpus": 1}
    assert share_of_machine(nodes, 2, {"trainer": {"devices": 2}}) == {"num_cpus": 24, "num_gpus": 2}
    assert share_of_machine(nodes, 4, cpu) == {"num_cpus": 2}
    assert share_of_machine([node(CPU=4)], 2, auto) == {"num_cpus": 2}, "a cluster without GPUs"
    with pytest.raises(ConfigError, match=r"sweep.jobs=3 rows of 2 GPU.* need 6 on a machine, .* has 4; .*jobs 2"):
        share_of_machine(nodes, 3, {"trainer": {"devices": 2}})
    with pytest.raises(ConfigError, match=r"sweep.jobs=9 rows of 1 CPU.* smallest has 8; use --sweep.jobs 8"):
        share_of_machine(nodes, 9, cpu)
    with pytest.raises(ConfigError, match=r"no machine with CPUs for rows; add one: ray start"):
        share_of_machine([login, gone], 1, auto)


def test_a_row_is_on_one_machine() -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.raises(ConfigError, match=r"trainer.num_nodes=2 with sweep.launcher=ray"):
        launcher(SWEEP, {"trainer": {"num_nodes": 2}})
    with pytest.raises(ConfigError, match=r"trainer.devices=\[0, 1\] with sweep.launcher=ray: .*e.g. 2"):
        launcher(SWEEP, {"trainer": {"devices": [0, 1]}})


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 \(Connection refused\)"):
        next(launcher(SWEEP, {})([Path("runs/a")], lambda *_: None))


@pytest.fixture
def cluster(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines of one CPU each; the first one is the head."""
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise a token is written to the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(tmp_path)
    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    quick |= {f"raylet_rpc_server_reconnect_timeout_{part}_s": 2 for part in ("base", "max")}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "_system_config": quick})
    cluster.second = cluster.add_node(**machine)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def folders(*names: str) -> list[Path]:
    run_dirs = [Path("runs/table", name) for name in names]
    for run_dir in run_dirs:
        run_dir.mkdir(parents=True)
        (run_dir / "run.yaml").touch()
    return run_dirs


# A row's process: says where and as what it runs, and trains until it is let go.
CHILD = """
import json, os, pathlib, sys, time
run_dir, machine = pathlib.Path(sys.argv[1]), sys.argv[2]
with (run_dir / "starts").open("a") as file:
    file.write(f"{machine} {os.getppid()} {os.getpid()}\\n")
while not (run_dir.parent / f"go-{machine}").exists():
    time.sleep(0.05)
(run_dir / "results.json").write_text(json.dumps({"machine": machine}))
"""


SLEEP = "import os, sys, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(300)"


def starts(run_dir: Path) -> list[list[str]]:
    path = run_dir / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_no_row_is_lost_with_its_machine(cluster: Any) -> None:
    child = CHILD

    def fit(run_dir: Path, environment: dict[str, str], stop: Any) -> str | None:
        import ray

        from mobilemamba.sweep import row

        machine = ray.get_runtime_context().get_node_id()
        row._command = lambda folder: [sys.executable, "-c", child, str(folder), machine]
        return row.fit_row(run_dir, environment, stop)

    before = signal.getsignal(signal.SIGTERM)
    run_dirs = folders("a", "b", "c")
    done: dict[Path, str | None] = {}
    removed = ""
    end = time.monotonic() + 200
    events = launcher(SWEEP, {"trainer": {"accelerator": "cpu"}})(run_dirs, fit)
    for event, run_dir, reason in events:
        assert time.monotonic() < end, [starts(run_dir) for run_dir in run_dirs]
        if event == "said":
            assert str(reason).endswith("each row takes 1 CPU(s) of one")
            assert signal.getsignal(signal.SIGTERM) is before, "Ray's handler would end this process before its rows"
        if event == "done":
            done[run_dir] = reason
        running = {machine: pids for run_dir in run_dirs for machine, *pids in starts(run_dir)}
        if not removed and len(running) == 2:
            removed = cluster.second.node_id
            cluster.remove_node(cluster.second, allow_graceful=False)
            for pid in running.pop(removed):  # Ray's worker and the row: they would go with their machine
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            (head,) = running
            Path("runs/table", f"go-{head}").touch()
    assert done == dict.fromkeys(run_dirs)
    assert removed
    assert {read_json(run_dir / "results.json")["machine"] for run_dir in run_dirs} == {head}
    lost = [run_dir for run_dir in run_dirs if len(starts(run_dir)) > 1]
    assert [[machine for machine, *_ in starts(run_dir)] for run_dir in lost] == [[removed, head]]
    assert [read_json(run_dir / "status.json")["attempts"] for run_dir in lost] == [2]


@pytest.mark.slow
def test_a_real_sweep(cluster: Any, write: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"a": {"model.lr": 0.01}, "b": {"model.lr": 0.02}}
    small = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--table_size", "null")
    main(["fit", *write(rows, launcher="ray"), *small])
    for name in rows:
        assert read_json(Path("runs/table", name, "results.json"))["epochs"] == 1
    assert Path("runs/table/results.md").read_text().count("| finished") == 2
    assert "each row takes 1 CPU(s)" in capsys.readouterr().out


@pytest.mark.slow
def test_stopping_ends_the_rows_and_a_row_that_cannot_run_says_why(cluster: Any) -> None:
    command = [sys.executable, "-c", SLEEP]

    def fit(run_dir: Path, environment: dict[str, str], stop: Any) -> str | None:
        if run_dir.name == "broken":
            raise ValueError("a bug\nof two lines")
        from mobilemamba.sweep.row import run_logged

        return run_logged([*command, str(run_dir)], run_dir / "log.txt", "row", environment, stop)

    broken, stopped = folders("broken", "stopped")
    events = launcher(SWEEP, {"trainer": {"accelerator": "cpu"}})([Path("runs/table/lost"), broken, stopped], fit)
    reasons: dict[str, str] = {}
    for event, run_dir, reason in events:
        if event == "done":
            reasons[run_dir.name] = str(reason)
        if (stopped / "pid").exists() and len(reasons) == 2:
            break
    events.close()
    process = Path("/proc", (stopped / "pid").read_text(), "stat")
    assert not process.exists() or process.read_text().split()[2] == "Z", "ended, though perhaps not yet buried"
    assert reasons["broken"] == "Ray: of two lines"
    assert "does not see" in reasons["lost"]
    assert "use a folder that all machines share" in reasons["lost"]
