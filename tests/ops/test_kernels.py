"""What is said of the kernels: which run, and why no faster ones do."""

import sys

import pytest
import torch

from mobilemamba.errors import BackendUnavailableError
from mobilemamba.ops import batch_norm, selective_scan
from mobilemamba.ops.backends import Kernel
from mobilemamba.ops.kernels import describe_kernels, summarize
from mobilemamba.ops.native import library
from mobilemamba.ops.selective_scan import mamba_ssm
from tests.ops.scans import needs_native

pytestmark = pytest.mark.kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_not", lambda: "switched off by MOBILEMAMBA_NATIVE=0")


@needs_native
def test_all_fast() -> None:
    assert describe_kernels(CPU) == "kernels: scan native, wavelet native, batch norm native, 1 thread"


@needs_native
@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ("chunked", "scan chunked (chosen), wavelet native, batch norm native"),
        ("reference", "scan reference (chosen), wavelet reference (chosen), batch norm reference (chosen)"),
    ],
)
def test_a_chosen_scan(backend: str, line: str) -> None:
    assert describe_kernels(CPU, backend) == f"kernels: {line}, 1 thread"


@pytest.mark.usefixtures("no_library")
def test_all_slow_for_one_reason() -> None:
    assert describe_kernels(CPU) == "kernels: plain PyTorch (switched off by MOBILEMAMBA_NATIVE=0), 1 thread"


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_a_chosen_scan_shows_as_what_it_is(backend: str) -> None:
    kernels = [
        selective_scan.BACKENDS.explain(backend, CPU, torch.float32),
        batch_norm.BACKENDS.explain("auto", CPU, torch.float32),
    ]
    assert summarize(kernels, CPU) == (
        f"kernels: scan {backend} (chosen), batch norm PyTorch, 1 thread; "
        "no native batch norm: switched off by MOBILEMAMBA_NATIVE=0"
    )


@pytest.mark.usefixtures("no_library")
def test_a_chosen_scan_that_cannot_run_is_an_error() -> None:
    with pytest.raises(BackendUnavailableError, match="switched off by MOBILEMAMBA_NATIVE=0"):
        selective_scan.BACKENDS.explain("native", CPU, torch.float32)


def test_on_a_gpu_the_kernels_of_a_cpu_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # its import fails
    mamba_ssm._kernel.cache_clear()
    line = describe_kernels(CUDA)
    mamba_ssm._kernel.cache_clear()
    assert line.startswith("kernels: scan chunked, wavelet PyTorch, batch norm PyTorch; no triton scan")
    assert "; no mamba_ssm scan: its kernel " in line
    assert "native" not in line
    assert "thread" not in line


@needs_native
@pytest.mark.parametrize(
    ("dtype", "channels_last", "expected"),
    [
        (torch.float32, True, Kernel("batch norm", "native")),
        (torch.float32, False, Kernel("batch norm", "PyTorch", {"native": "the maps are not channels-last"})),
        (torch.float16, True, Kernel("batch norm", "PyTorch", {"native": "its kernel knows no float16"})),
        (
            torch.float64,
            False,
            Kernel("batch norm", "PyTorch", {"native": "the compiled kernels compute in single precision"}),
        ),
    ],
    ids=str,
)
def test_batch_norm(dtype: torch.dtype, channels_last: bool, expected: Kernel) -> None:
    assert batch_norm.BACKENDS.explain("auto", CPU, dtype, channels_last=channels_last) == expected


def test_reasons_are_said_once() -> None:
    kernels = [
        Kernel("scan", "native"),
        Kernel("a", "PyTorch", {"native": "x"}),
        Kernel("b", "PyTorch", {"native": "x"}),
    ]
    assert summarize(kernels, CUDA) == "kernels: scan native, a PyTorch, b PyTorch; no native a and b: x"
