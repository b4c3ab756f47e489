"""The parts of a GPU run: that they find what is wrong, and measure what they name."""

import json
import math
import subprocess
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilemamba.analysis.benchmark.cases import Case, own_size
from mobilemamba.analysis.benchmark.ceilings import matrix_product
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.benchmark.scans import ScanShape
from mobilemamba.analysis.benchmark.workload import Workload, Workshop
from mobilemamba.analysis.gpu import correctness, speed, training
from mobilemamba.analysis.gpu.machine import rounded_to_tf32
from mobilemamba.analysis.gpu.run import Part, Run
from mobilemamba.analysis.gpu.sizes import QUICK, Sizes
from mobilemamba.analysis.machine import rounds_to_tf32
from mobilemamba.analysis.timing import Timings
from mobilemamba.errors import ConfigError
from tests.analysis.gpu_runs import new_run, play_gpu


def test_a_wrong_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(size: tuple[int, int], *args: torch.Tensor) -> torch.Tensor:
        y = correctness._by_definition(size, *args).clone()
        y[:, -1] = torch.empty_like(y[:, -1])  # forgotten
        return y

    shape = ScanShape(1, 2, 3, 1, 2, 3)
    assert max(correctness.check_scan(shape)[0].values()) < 1e-5
    monkeypatch.setattr(correctness, "_scan", wrong)
    errors, same = correctness.check_scan(shape)
    assert math.isinf(errors["y"])
    assert not same  # NaN is unequal to itself
    run = new_run(tmp_path)
    run.do([Part("scans", "Scans", correctness.scans, 60)])
    wrong = [finding["found"] for finding in run.parts["scans"]["findings"] if finding["ok"] is False]
    assert sum(found.startswith("wrong: y, ") and found.endswith(", bits") for found in wrong) == 4  # shapes
    assert sum(found.startswith("inf at worst, by ") for found in wrong) == 2  # dtypes


def test_what_fails_leaves_the_rest_of_its_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that no kernel takes, and a network that cannot be captured."""
    right = correctness.check_scan

    def check(shape: ScanShape) -> tuple[dict[str, float], bool]:
        if shape.height * shape.map_width == 6:
            raise RuntimeError("out of resource: shared memory\nand more")
        return right(shape)

    def capture(*_: object) -> None:
        raise ConfigError("cannot be captured")

    play_gpu(monkeypatch)
    monkeypatch.setattr(correctness, "check_scan", check)
    monkeypatch.setattr(correctness.CudaGraphs, "__call__", capture)
    run = new_run(tmp_path, sizes=replace(QUICK, dtypes=("float32",)))
    run.do([Part("scans", "Scans", correctness.scans, 60), Part("right", "Right", correctness.networks, 60)])
    bad = [finding for part in run.parts.values() for finding in part["findings"] if not finding["ok"]]
    assert [(finding["what"], finding["found"]) for finding in bad] == [
        ("scan K2 D5 N1 2x3 float32", "failed: RuntimeError: out of resource: shared memory"),
        ("mobilemamba_t2 float32, CUDA graph", "failed: ConfigError: cannot be captured"),
    ]
    assert [part["error"] for part in run.parts.values()] == ["", ""]
    found = [finding["what"] for part in run.parts.values() for finding in part["findings"]]
    assert {"opcheck of the scan", "mobilemamba_t2 gradients float32"} <= set(found)
    monkeypatch.setattr(Run, "_is_useless", lambda self: True)  # then nothing in this process can go on
    assert run.do([Part("scans", "Scans", correctness.scans, 60), Part("left", "Left", correctness.scans, 60)])


def test_the_most_important_networks_come_first_and_a_peer_has_its_faster_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[list[Case]]()
    monkeypatch.setattr(speed, "measure", lambda cases, *_, **__: measured.append(cases) or [])
    run = new_run(tmp_path, 200, Sizes())
    run.do([Part("networks", "Networks", speed.networks, 160)])
    assert [(cases[0].batch, cases[0].dtype) for cases in measured[:4]] == [
        *((256, "float32"), (1, "float32"), (256, "bfloat16"), (1, "bfloat16")),  # a CPU has no float16
    ]
    assert {(case.is_ours, case.layout) for case in measured[0]} == {(True, "channels_last"), (False, "auto")}
    assert all(case.fused for cases in measured for case in cases), "norms are folded"
    assert all(case.size == own_size(case.model) for cases in measured for case in cases)


def test_speed_is_held_against_the_peer_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the faster mode of each; a mode that fails is told, and one without a peer has no goal."""
    speeds = {("mobilemamba_t2", "graph"): 300.0, ("mobilemamba_t2", "eager"): 100.0, ("shvit_s2", "eager"): 50.0}
    speeds |= {("test_efficientnet", "graph"): 200.0, ("test_efficientnet", "eager"): 250.0}

    def measured(cases: list[Case], *_: object, **__: object) -> list[Any]:
        return [timed(case, speeds.get((case.model, case.mode))) for case in cases]

    monkeypatch.setattr(speed, "measure", measured)
    monkeypatch.setattr(Run, "has_graphs", True)
    sizes = replace(QUICK, dtypes=("bfloat16", "float32"), others=("shvit_s2",), batches=(2,))
    run = new_run(tmp_path, sizes=sizes)
    run.do([Part("networks", "Networks", speed.networks, 160)])
    for precision, goal in (("bfloat16", ">= 1.3"), ("tf32", ">= 1.1"), ("float32", ">= 1.1")):
        found = [f for f in run.parts["networks"]["findings"] if precision == f["what"].split(", ")[1]]
        assert [tuple(finding.values()) for finding in found] == [
            (f"shvit_s2 graph, {precision}, batch 2", "it fails", "", False),
            (
                f"mobilemamba_t2, {precision}, batch 2",
                "1.20 x test_efficientnet: 300 img/s, 6.667 ms (graph)",
                goal,
                goal == ">= 1.1",
            ),
            (f"test_efficientnet, {precision}, batch 2", "250 img/s, 8 ms (eager), auto", "", None),
            (f"shvit_s2, {precision}, batch 2", "50 img/s, 40 ms (eager), auto", "", None),
        ]


def timed(case: Case, images_per_second: float | None) -> Record:
    """A record of a case with what a comparison reads."""
    values = dict.fromkeys((field.name for field in fields(Record)), None) | asdict(case)
    latency = None if images_per_second is None else 1e3 * case.batch / images_per_second
    error = "it fails" if images_per_second is None else ""
    return Record(**values | {"images_per_second": images_per_second, "latency_ms": latency, "error": error})


@pytest.mark.parametrize("on", [True, False])
def test_products_are_rounded_to_tf32_in_a_context_alone(on: bool) -> None:
    before = rounds_to_tf32("cuda")
    with rounded_to_tf32(on=not on):
        with rounded_to_tf32(on=on):
            assert rounds_to_tf32("cuda") == (on, on)
        assert rounds_to_tf32("cuda") == (not on, not on)
    assert rounds_to_tf32("cuda") == before


def test_a_profiler_that_sees_no_kernel_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.profile, "key_averages", lambda self: [])
    run = new_run(tmp_path, sizes=replace(QUICK, img_size=32))
    run.do([Part("kernels", "Kernels", speed.kernels, 60)])
    assert [finding["found"] for finding in run.parts["kernels"]["findings"]] == ["unknown: the profiler sees none"]


def test_a_wrong_gradient_of_the_wavelet_branch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    assert correctness.check_wavelet(run, "float32", 3) < 1e-6
    right = correctness.wavelet_conv

    def wrong(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        return right(x, weight, *others) + (0 if others[-1] == "reference" else 1e-3) * (weight - weight.detach()).sum()

    monkeypatch.setattr(correctness, "wavelet_conv", wrong)
    assert correctness.check_wavelet(run, "float32", 3) > 1e-5


def test_all_sizes_of_the_scan_are_among_the_shapes(tmp_path: Path) -> None:
    shapes = correctness.scan_shapes(new_run(tmp_path, sizes=Sizes()))
    assert {shape.height * shape.map_width for shape in shapes} == {1, 7, 9, 16, 36, 49, 64, 144, 196, 225, 256, 1024}
    assert {(s.directions, s.width, s.d_state) for s in shapes} == {
        (k, d, n) for k in (1, 2, 4) for d in (30, 224, 320, 544) for n in (1, 16)
    }
    assert len(shapes) < 80
    assert {shape.dtype for shape in shapes} == {"float32", "float16", "bfloat16"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(2.0, 3000.0), (3.0, 2000.0)], [("1.50 x", True), ("1.50 x", None)]),
        ([(4.0, None), (3.0, None)], [("0.75 x", False)]),
        ([(None, None), (3.0, None)], []),
    ],
    ids=["on a GPU", "memory not counted", "ours fails"],
)
def test_a_step_is_held_against_the_peer_s(
    found: list[tuple[float | None, float | None]],
    expected: list[tuple[str, bool | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Time and, where it is counted, peak memory."""

    @dataclass
    class Found:
        model: str
        batch: int
        latency_ms: float | None
        peak_memory_mib: float | None
        error: str

    def step(cases: list[Case], *_: object, **__: object) -> list[Found]:
        errors = ["" if latency else "it fails" for latency, _ in found]
        cases_found = zip(cases, found, errors, strict=True)
        return [Found(case.model, case.batch, *values, error) for case, values, error in cases_found]

    monkeypatch.setattr(training, "measure", step)
    run = new_run(tmp_path)
    run.do([Part("steps", "Steps", training.steps, 60)])
    ours, peer, *ratios = run.parts["steps"]["findings"]
    assert ours["ok"] is (None if found[0][0] else False)
    assert peer["what"] == "training step of test_efficientnet, batch 2"
    assert ("MiB at the peak" in peer["found"]) == (len(expected) > 1)
    assert [(ratio["found"], ratio["ok"]) for ratio in ratios] == expected


def test_operators_are_timed_without_the_host_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many calls in one CUDA graph, whose time is that of one call in the report."""
    playing, calls, run = play_gpu(monkeypatch), list[int](), new_run(tmp_path)
    again = speed._repeated(run, lambda: calls.append(1))
    again()
    noted = len(calls)
    again()
    assert (len(playing.captured), len(calls)) == (1, noted)

    def time_all(clocks: dict[str, Any], *_: object) -> tuple[dict[str, Timings], dict[str, Exception]]:
        return {key: Timings((20e-3,), 1) for key in clocks}, {}

    monkeypatch.setattr(speed, "interleave", time_all)
    run.do([Part("operators", "Operators", lambda run: speed._operators(run, 2, False, "inference"), 60)])
    records = run.parts["operators"]["records"]
    assert [record["microseconds"] for record in records] == pytest.approx([1000] * len(records))
    findings = run.parts["operators"]["findings"]
    moved = {f"{record['operator']}, inference": record["gbytes_per_second"] for record in records}
    assert [finding["what"] for finding in findings] == sorted(moved, key=lambda what: -moved[what])[:6]
    scans = [what for what in moved if "scan" in what]
    assert [f["what"] for f in findings if f["ok"] is not None] == [max(scans, key=lambda what: moved[what])]


def test_memory_against_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.growth({128: 999, 256: 1000, 512: 4000}) == pytest.approx(1)
    assert training.growth({512: 16000, 256: 1000}) == pytest.approx(2)

    def case(run: Run, model: str, batch: int, dtype: str, *, train: bool) -> Case:
        return Case(model, run.sizes.size_of(model), batch, layout="channels_last", fused=False, train=train)

    def peak(workload: Workload, device: torch.device) -> int:
        return workload.held_bytes + 100 * next(workload.held()).numel()

    monkeypatch.setattr(Run, "case", case)
    monkeypatch.setattr(training, "cuda_peak", peak)
    monkeypatch.setattr("mobilemamba.analysis.gpu.run.synchronize", lambda device: None)
    run = new_run(tmp_path)
    run.device = torch.device("cuda")
    run.do([Part("memory", "Memory", training.memory, 60)])
    *_, last = run.parts["memory"]["findings"]
    assert last == {"what": "memory = c pixels^p", "found": "p = 1.00", "goal": "<= 1.05", "ok": True}


@pytest.mark.parametrize(("ends", "error"), [(True, ""), (False, ""), (True, "it fails")])
def test_compilation_is_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, error: str) -> None:
    def run_process(command: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        assert 20 < timeout < 60
        assert {"compiled", "mobilemamba_t2"} <= set(command)
        if not ends:
            raise subprocess.TimeoutExpired(command, timeout)
        rows = [{"model": "mobilemamba_t2", "error": error, "images_per_second": None if error else 1234.5}]
        Path(command[-1]).write_text(json.dumps(rows))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(speed.subprocess, "run", run_process)
    run = new_run(tmp_path, sizes=replace(QUICK, compiled=True))
    run.do([Part("compiled", "Compiled", speed.compiled, 60)])
    (finding,) = run.parts["compiled"]["findings"]
    assert finding["found"] == ((error or "1,234 img/s") if ends else finding["found"])
    assert finding["ok"] is (False if error else None)
    assert ends or finding["found"].startswith("not done in 5")


def test_a_compilation_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nImportError: no such thing\n")

    monkeypatch.setattr(speed.subprocess, "run", run_process)
    run = new_run(tmp_path, sizes=replace(QUICK, compiled=True))
    run.do([Part("compiled", "Compiled", speed.compiled, 60)])
    (finding,) = run.parts["compiled"]["findings"]
    assert finding["found"] == "failed with code 1: ImportError: no such thing"


def test_what_a_gpu_measures_is_made_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes a second for the matrices of each product, and longer for the pictures of all networks."""
    asked = list[object]()

    class AskedError(Exception):
        pass

    def generator(device: object = "cpu") -> None:
        asked.append(device)
        raise AskedError

    monkeypatch.setattr(torch, "Generator", generator)
    with pytest.raises(AskedError):
        matrix_product("cuda", "float16", 64)
    with pytest.raises(AskedError):
        Workshop().build(Case("mobilemamba_t2", 64, device="cuda", layout="channels_last"))
    assert asked == ["cuda", "cuda"]
