"""``mobilemamba gpu``: the whole run on a CPU that plays a GPU, in tiny sizes; the refusal where there is none."""

import json
import math
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.ceilings import matrix_product
from mobilemamba.analysis.benchmark.scans import ScanShape
from mobilemamba.analysis.benchmark.workload import Workload, Workshop
from mobilemamba.analysis.gpu import correct, speed, training
from mobilemamba.analysis.gpu.run import Part, Run, table
from mobilemamba.analysis.gpu.sizes import QUICK, Sizes
from mobilemamba.analysis.rounds import Timings
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.models.inference import graphs
from mobilemamba.tools.gpu import PARTS
from tests.models.fake_cuda import FakeCuda

CPU = torch.device("cpu")


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A CPU with CUDA graphs."""
    fake = FakeCuda()
    monkeypatch.setattr(graphs, "cuda", fake)
    monkeypatch.setattr(Run, "has_graphs", True)
    return fake


@pytest.mark.slow
@pytest.mark.usefixtures("short_benchmarks")
def test_the_whole_run(
    printed, playing: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part, with the folder of pictures; the lines, the file, the table of 80 columns and the curves."""
    monkeypatch.setenv("COLUMNS", "80")
    for part in ("train", "val"):
        for label, colour in enumerate(("red", "blue")):
            folder = tmp_path / "pictures" / part / colour
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), (255 * (1 - label), number, 255 * label)).save(folder / f"{number}.png")
    options = ("--device", "cpu", "--quick", "--output", str(tmp_path / "gpu.json"), "--batch_size", "4")
    out = printed("gpu", *options, "--data", str(tmp_path / "pictures"), "--minutes", "0.02")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == [*(part.name for part in PARTS), "curves"]
    assert not [part["error"] for part in found.values() if part["error"]]
    assert max(len(line) for line in out.splitlines() if line[:1] in "┌│├└") <= 80
    for part in found.values():
        for finding in part["findings"]:
            assert f"  {finding['what']}: " in out

    errors = found["scans"]["records"]
    assert {(r["height"] * r["map_width"], r["dtype"]) for r in errors} >= {(6, "float32"), (1, "bfloat16")}
    assert all(
        set(r["errors"]) == {"y", "u", "dt", "A", "B", "C", "D", "dt_bias", "dt_weight"} and r["same_bits"]
        for r in errors
    )
    right = found["right"]["records"]
    assert all(len(r["errors"]) == 3 for r in right)  # as it is, laid out, by a CUDA graph
    named = {record["operator"].split()[0] for record in found["operators"]["records"] if "operator" in record}
    assert {"selective_scan", "selective_scan_backward"} <= named
    modes = {(r["model"], r["mode"], r["precision"]) for r in found["networks"]["records"]}
    assert len(modes) == 2 * 2 * 3
    assert not [r["error"] for r in found["networks"]["records"] if r["error"]]
    assert found["kernels"]["records"]
    assert [r["model"] for r in found["steps"]["records"]] == ["mobilemamba_t2", "test_efficientnet"]
    assert [r["differ"] for r in found["bits"]["records"]] == [[], []]
    judged = {f["what"]: f["ok"] for name in ("scans", "right", "bits") for f in found[name]["findings"]}
    assert False not in judged.values()
    for record in found["curves"]["records"]:
        assert record["losses"][-1]["seconds"] >= 0.6
        assert 0 <= record["scores"][-1]["top1"] <= 100
    with Image.open(tmp_path / "gpu.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ConfigError, r"--device cuda: torch .* finds no GPU; run it where there is one"),
        (["--device", "cpu"], ConfigError, "--device cpu: this run is for a GPU; choose cuda, or --quick"),
        (
            ["--quick", "--device", "cpu", "--parts", "steps,speed"],
            ConfigError,
            "--parts speed: expected some of machine",
        ),
        (["--quick", "--device", "cpu", "--parts", ","], ConfigError, "--parts ,: expected some of machine"),
        (["--quick", "--device", "cpu", "--parts", "curves"], ConfigError, "it needs --data"),
        (["--quick", "--device", "cpu", "--seconds", "0"], ConfigError, "--seconds 0.*: expected more than 0"),
        (
            ["--quick", "--device", "cpu", "--batch_size", "1", "--data", "x"],
            ConfigError,
            "--batch_size 1: expected 2 or",
        ),
        (
            ["--quick", "--device", "cpu", "--minutes", "9"],
            ConfigError,
            "--minutes 9.0: it is for the trainings of --da",
        ),
        (["--quick", "--device", "cpu", "--output", "gpu.txt"], ConfigError, "--output gpu.txt: .*json"),
        (["--quick", "--device", "cpu", "--data", "nowhere"], DataError, "nowhere"),
    ],
)
def test_mistakes_are_one_line(printed, options: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        printed("gpu", *options)
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "exit_code", 2) == 2


def test_the_page_s_commands_are_refused_for_want_of_a_gpu_alone(printed, root: Path) -> None:
    page = (root / "docs/gpu.md").read_text()
    lines = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("mobilemamba gpu")]
    assert len(lines) == 3
    for line in lines:
        with pytest.raises(ConfigError, match="finds no GPU"):
            printed(*line[1:])
    for part in PARTS:
        assert f"| `{part.name}` |" in page


def test_the_first_parts_on_a_cpu(printed, tmp_path: Path) -> None:
    out = printed(
        "gpu", "--device", "cpu", "--quick", "--parts", "bits,machine", "--output", str(tmp_path / "gpu.json")
    )
    assert "  matrix product, bfloat16: " in out
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == ["machine", "bits"]
    assert all(finding["ok"] in (True, None) for part in found.values() for finding in part["findings"])


def new_run(tmp_path: Path, seconds: float = 60, sizes: Sizes = QUICK, goes_on: bool = False) -> Run:
    return Run(CPU, sizes, tmp_path / "run.json", seconds, goes_on)


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


def test_after_a_fault_of_the_gpu_the_other_parts_run_in_a_new_process(
    printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Run, "do", lambda self, parts: list(parts[-2:]))
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: started.append(command) or SimpleNamespace(returncode=2)
    )
    options = ("gpu", "--device", "cpu", "--quick", "--output", str(tmp_path / "gpu.json"))
    for trainings in ((), ("--data", str(tmp_path), "--minutes", "2")):
        with pytest.raises(SystemExit) as ended:  # as the new process has ended
            printed(*options, *trainings)
        assert ended.value.code == 2
    assert {"-m", "mobilemamba_command", "--device=cpu", "--quick=true", "--parts=kernels,compiled"} <= set(started[0])
    assert not [option for option in started[0] if "minutes" in option]
    assert {"--parts=compiled,curves", f"--data={tmp_path}", "--minutes=2.0", "--batch_size=128"} <= set(started[1])


def test_a_wrong_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(size: tuple[int, int], *args: torch.Tensor) -> torch.Tensor:
        y = correct._by_definition(size, *args).clone()
        y[:, -1] = torch.empty_like(y[:, -1])  # forgotten
        return y

    shape = ScanShape(1, 2, 3, 1, 2, 3)
    assert max(correct.check_scan(shape)[0].values()) < 1e-5
    monkeypatch.setattr(correct, "_scan", wrong)
    errors, same = correct.check_scan(shape)
    assert math.isinf(errors["y"])
    assert not same  # NaN is unequal to itself
    run = new_run(tmp_path)
    run.do([Part("scans", "Scans", correct.scans, 60)])
    assert False in {finding["ok"] for finding in run.parts["scans"]["findings"]}


def test_all_sizes_of_the_scan_are_among_the_shapes(tmp_path: Path) -> None:
    shapes = correct.scan_shapes(new_run(tmp_path, sizes=Sizes()))
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
    assert peer["what"] == "step of test_efficientnet, batch 2"
    assert ("MiB at the peak" in peer["found"]) == (len(expected) > 1)
    assert [(ratio["found"], ratio["ok"]) for ratio in ratios] == expected


def test_operators_are_timed_without_the_host_s_time(
    playing: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls in one CUDA graph, whose time is that of one call in the report."""
    calls, run = list[int](), new_run(tmp_path)
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
    assert records


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


def test_a_wrong_gradient_of_the_wavelet_branch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    assert correct.check_wavelet(run, "float32", 3) < 1e-6
    right = correct.wavelet_conv

    def wrong(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        return right(x, weight, *others) + (0 if others[-1] == "reference" else 1e-3) * (weight - weight.detach()).sum()

    monkeypatch.setattr(correct, "wavelet_conv", wrong)
    assert correct.check_wavelet(run, "float32", 3) > 1e-5


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
        Workshop().build(Case("mobilemamba_t2", 64, device="cuda"), "channels_last")
    assert asked == ["cuda", "cuda"]
