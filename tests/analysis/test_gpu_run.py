"""The order of a GPU run: what fits, what fails, what hangs, and what is left of it."""

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mobilemamba.analysis.gpu.run import Part, Run, table
from mobilemamba.analysis.gpu.sizes import QUICK
from tests.analysis.gpu_runs import new_run


def test_what_does_not_fit_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(run: Run) -> None:
        run.find("first", "1", "> 0", ok=True)
        assert not run.has_time(2000, "second")

    run = new_run(tmp_path, 1.2)
    run.do([Part("slow", "Slow", slow, 1)])
    run._end -= 1
    run.do([Part("late", "Late", slow, 1), Part("own", "Own time", slow, 5, beyond=True)])
    found = json.loads((tmp_path / "run.json").read_text())["parts"]
    assert [part["skipped"] for part in found.values()] == [["second"], ["all"], ["second"]]
    out = capsys.readouterr().out
    assert "  second: skipped, the part's time is spent" in out
    assert "Late: skipped, the 1 s are spent" in out


def test_the_table_has_what_has_a_goal_and_what_is_missing() -> None:
    found = [("a", "1", ">= 2", False), ("b", "3", ">= 2", True), ("c", "4", "", None)]
    findings = [dict(zip(("what", "found", "goal", "ok"), values, strict=True)) for values in found]
    parts = {"one": {"findings": findings, "error": "", "skipped": []}}
    parts["two"] = {"findings": [], "error": "it hangs", "skipped": ["d", "e"]}
    console = Console(width=80, file=io.StringIO())
    console.print(table(parts, 80))
    lines = console.file.getvalue().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [["a", "1", ">= 2", "NO"], ["b", "3", ">= 2", "yes"]]
    notes = [line.strip() for line in lines if "one" in line or "two" in line]
    assert notes == ["two FAILED: it hangs", "two: skipped for want of time: d, e"]


def test_a_part_that_fails_does_not_take_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: Run) -> None:
        run.find("before", "1")
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    parts = [Part("bad", "Bad", fails, 5), Part("good", "Good", lambda run: run.find("all", "well", "", ok=True), 5)]
    run = new_run(tmp_path)
    assert run.do(parts) == []
    assert run.parts["bad"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert run.parts["good"]["findings"]
    assert new_run(tmp_path, goes_on=True).parts == run.parts
    assert table(run.parts, 80)
    monkeypatch.setattr(Run, "_is_useless", lambda self: True)
    assert [part.name for part in run.do(parts)] == ["good"]


def test_a_fault_that_leaves_the_gpu_useless_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every call fails, that which frees memory too."""

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def bad(run: Run) -> None:
        run.add(before=1)
        fails()

    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    monkeypatch.setattr(torch, "ones", fails)
    run = new_run(tmp_path)
    run.device = torch.device("cuda")
    left = run.do([Part("bad", "Bad", bad, 5), Part("good", "Good", fails, 5)])
    assert [part.name for part in left] == ["good"]
    found = json.loads((tmp_path / "run.json").read_text())["parts"]["bad"]
    assert found["records"] == [{"before": 1}]
    assert "illegal memory access" in found["error"]


def test_a_part_that_hangs_does_not_take_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is left to them by a thread, as nothing can end a wait for the GPU."""
    ended, left = threading.Event(), list[object]()

    def hangs(run: Run) -> None:
        run.add(before=1)
        assert ended.wait(20)

    def leave(parts: list[Part]) -> None:
        left.append([part.name for part in parts])
        left.append(json.loads((tmp_path / "run.json").read_text())["parts"]["bad"])
        ended.set()

    monkeypatch.setattr("mobilemamba.analysis.gpu.run._GRACE", -4.9)
    monkeypatch.setattr("mobilemamba.analysis.gpu.run.synchronize", lambda device: None)
    run = Run(torch.device("cuda"), QUICK, tmp_path / "run.json", 60, leave=leave)
    run.do([Part("bad", "Bad", hangs, 5), Part("good", "Good", lambda run: None, 60)])
    names, bad = left
    assert names == ["good"]
    assert (bad["records"], bad["error"]) == ([{"before": 1}], "it hangs: not done -5 s after its time")


def test_a_run_that_is_killed_leaves_what_it_has_found(tmp_path: Path) -> None:
    left: list[dict[str, Any]] = []

    def part(run: Run) -> None:
        left.append(json.loads((tmp_path / "run.json").read_text())["parts"]["part"])
        run.add(number=1)
        assert run.has_time(1, "second")
        left.append(json.loads((tmp_path / "run.json").read_text())["parts"]["part"])

    run = new_run(tmp_path)
    run.do([Part("part", "Part", part, 60)])
    assert [found["records"] for found in left] == [[], [{"number": 1}]]
    assert {found["error"] for found in left} == {"the process ended within it"}
    assert run.parts["part"]["error"] == ""
