"""The kernels of a run on a GPU, compiled before it."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilemamba.analysis.gpu import ahead, correctness
from mobilemamba.analysis.gpu.run import Part, Run
from mobilemamba.analysis.gpu.sizes import QUICK
from mobilemamba.ops.depthwise.triton import _kernels as kernels
from mobilemamba.ops.depthwise.triton import depthwise_conv


def new_run(folder: Path) -> Run:
    return Run(torch.device("cpu"), QUICK, folder / "run.json", 60)


class NoDriver:
    """An H100 for Triton's compiler, without a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def test_kernels_are_compiled_ahead_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Triton itself, as at a launch; another number or size of pictures needs no other code."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    from triton.runtime.driver import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", NoDriver())
    (kernel,) = [x for x in kernels() if x.__name__ == "_depthwise"]
    monkeypatch.setattr(kernel, "device_caches", kernel.device_caches.copy())
    x, weight, bias = torch.zeros(33, 5, 7, 16), torch.zeros(3, 3, 16), torch.zeros(16)
    maps = [x, x[:32], x[:1], x[:, :1], x[:, :, :3].clone(), x.half()]
    calls: list[Any] = [partial(depthwise_conv, v, weight, bias) for v in maps]
    count, errors = ahead.compile_all(iter([*calls, lambda: 1 / 0]))
    assert (count, [type(error) for error in errors]) == (2, [ZeroDivisionError])
    cache, *_ = kernel.device_caches[0]
    assert len(cache) == 2
    assert list(tmp_path.rglob("*.cubin"))


@pytest.mark.slow
def test_what_is_compiled_ahead_are_scans_and_networks_in_all_forms(tmp_path: Path) -> None:
    calls = [*ahead.workloads(new_run(tmp_path))]
    assert len(calls) == len(correctness.scan_shapes(new_run(tmp_path))) + 2 * (1 + 2) + 3
    for call in calls:
        call()


@pytest.mark.parametrize(
    ("code", "out", "err", "found"),
    [
        (0, "151\n", "a warning\n", ("151", True)),
        (1, "150, 1 failed: KeyError: x\n", "", ("150, 1 failed: KeyError: x", False)),
        (-11, "", "", ("code -11", False)),
        (None, "", "", ("not all in this time; the others are when they are first called", None)),
    ],
)
def test_compiling_ahead_may_fail_or_be_ended(
    code: int | None,
    out: str,
    err: str,
    found: tuple[str, bool | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_process(command: list[str], timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "mobilemamba.analysis.gpu.ahead", "cuda"]
        if code is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(ahead.subprocess, "run", run_process)
    monkeypatch.setattr("mobilemamba.analysis.gpu.run.synchronize", lambda device: None)
    run = new_run(tmp_path)
    run.device = torch.device("cuda")
    run.do([Part("ahead", "Ahead", ahead.kernels_ahead, 60)])
    (finding,) = run.parts["ahead"]["findings"]
    assert (finding["found"], finding["ok"]) == found
