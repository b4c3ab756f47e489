"""The Triton kernels without a GPU: their numbers by Triton's interpreter, and what its compiler makes of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from mobilemamba.errors import BackendUnavailableError
from mobilemamba.ops import jit, stem_conv
from mobilemamba.ops.backends import forget_choices
from mobilemamba.ops.depthwise import triton as depthwise
from mobilemamba.ops.depthwise.native import RELU_AFFINE
from mobilemamba.ops.scan_norm_gate import triton as fused_scan
from mobilemamba.ops.selective_scan import BACKENDS, selective_scan_2d
from mobilemamba.ops.selective_scan import triton as scan
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.wavelet import triton as wavelet
from mobilemamba.ops.wavelet.native import by_band
from tests.ops.launches import Launch, compiled, launches_by_ptx, noted_launches
from tests.ops.scans import NAMES, assert_near, make_low_rank_inputs, make_map_inputs
from tests.ops.test_inference import make_scan

CUDA = torch.device("cuda")


@pytest.mark.slow
def test_by_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/triton_numbers.py"]
    run = subprocess.run(
        command, cwd=root, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"^\d+ passed(, \d+ warnings)? in", run.stdout, re.MULTILINE), run.stdout  # and none left out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("side", "directions", "width", "d_state"),
    [(1, 1, 30, 1), (3, 2, 448, 1), (14, 2, 320, 1), (15, 4, 70, 16), (32, 2, 224, 4)],
    ids=str,
)
def test_on_a_gpu(side: int, directions: int, width: int, d_state: int, dtype: torch.dtype) -> None:
    """Output and gradients, twice the same."""
    inputs = [x.detach() for x in make_map_inputs(2, directions, width, d_state, (side, side), dtype)]
    weights = torch.randn(inputs[0].shape).to(dtype)

    def results(backend: str, device: str, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
        y = selective_scan_2d(*leaves, size=(side, side), backend=backend)
        return [x.cpu() for x in (y, *torch.autograd.grad(y, leaves, weights.to(y)))]

    ours = results("triton", "cuda")
    assert all(torch.equal(a, b) for a, b in zip(ours, results("triton", "cuda"), strict=True))
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    exact = results("reference", "cpu", torch.float64)
    for what, a, b in zip(("y", *NAMES), ours, exact, strict=True):
        assert_near(a, b, tolerance, what)


# What the compiler makes of it


def scans(dtype: torch.dtype, directions: int, width: int, d_state: int, side: int) -> list[Launch]:
    """What is called for a network's scan: forward, backward, and two for inference."""
    size = (side, side)
    *inputs, weight = make_low_rank_inputs(2, directions, width, d_state, width // 32, size, dtype)
    low, weight = ScanInputs(*(v.detach().to("meta") for v in inputs)), weight.detach().to("meta")
    x = low._replace(dt=low.u[:, None].expand(2, directions, side**2, width))
    fused = [v.to("meta") for v in make_scan(directions, width, d_state, width // 32, size, dtype)]
    with noted_launches() as launches:
        scan.backward(scan.forward(x, size), x, size)
        scan.backward(low.u, low, size, weight)
        fused_scan.compute(*fused, 1e-5)
    return launches


def wavelets(dtype: torch.dtype, side: int, channels: int, kernel: int) -> list[Launch]:
    """What is called for a network's wavelet branch: forward, backward, and with what follows in inference."""
    x = torch.empty(2, side, side, channels, dtype=dtype, device="meta")
    weight = torch.empty(4 * channels, 1, kernel, kernel, device="meta")
    with noted_launches() as launches:
        wavelet.weight_gradient(wavelet.haar_conv(x, weight), x, weight)
        wavelet.convolve(x, by_band(weight), x, x, relu=True)
    return launches


def depthwises(dtype: torch.dtype, side: int, channels: int, kernel: int) -> list[Launch]:
    """What is called for a network's depthwise convolution, for large maps."""
    x, bias = (torch.empty(*shape, channels, dtype=dtype, device="meta") for shape in ((512, side, side), ()))
    with noted_launches() as launches:
        for stride in (1, 2):
            depthwise.depthwise_conv(x, x.new_empty(kernel, kernel, channels), bias, "swish", stride)
        depthwise.convolve(RELU_AFFINE, x, x, x.new_empty(kernel, kernel, channels), *3 * [bias])
    return launches


def stems(dtype: torch.dtype, side: int, channels: int) -> list[Launch]:
    """What is called for a network's first convolution, for many pictures."""
    x = torch.empty(64, side, side, 3, dtype=dtype, device="meta")
    with noted_launches() as launches:
        stem_conv._by_triton(x, x.new_empty(3, 3, 3, channels), x.new_empty(channels), 2, relu=True)
    return launches


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Triton has compiled for one of these tests, and for nothing else, the others find, in any process."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # that of a run has one for each process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
        yield


def read_code(cubin: bytes, folder: Path, option: str) -> str:
    import triton

    file, reader = folder / "kernel.cubin", Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not reader.is_file():
        pytest.skip("this Triton has no cuobjdump")
    file.write_bytes(cubin)
    return subprocess.run([reader, option, file], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers a thread, and the bytes of stack and local memory that stand for more of them."""
    usage = read_code(cubin, folder, "-res-usage")
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", usage)}


def loops(cubin: bytes, folder: Path) -> list[int]:
    """How many instructions lie between a jump back and where it goes; a few are where a program ends."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", read_code(cubin, folder, "-sass"))
    at = {int(address, 16): i for i, (address, _) in enumerate(code)}
    jumps = [(i, re.search(r"\bBRA .*?0x([0-9a-f]+)", instruction)) for i, (_, instruction) in enumerate(code)]
    lengths = [i + 1 - at[int(jump[1], 16)] for i, jump in jumps if jump is not None]
    return [length for length in lengths if length > 8]


#: What calls kernels, and the registers that these may take.
CALLS = {
    "scan of S6": (partial(scans, torch.float16, 2, 320, 1, 14), 192),
    "large scan": (partial(scans, torch.bfloat16, 2, 544, 16, 32), 192),
    "wavelet of S6": (partial(wavelets, torch.float16, 14, 160, 7), 128),
    "wavelet of T2": (partial(wavelets, torch.float32, 3, 224, 3), 128),
    "depthwise of S6": (partial(depthwises, torch.float16, 14, 320, 3), 168),
    "depthwise of T2": (partial(depthwises, torch.float32, 12, 48, 7), 224),
    "stem of S6": (partial(stems, torch.float16, 224, 24), 168),
    "stem of T2": (partial(stems, torch.float32, 192, 18), 192),
    "odd wavelet": (partial(wavelets, torch.bfloat16, 33, 115, 5), 192),
}
ON_BOTH = [
    pytest.param(*of_calls, capability, id=f"{name}-{capability}")
    for name, of_calls in CALLS.items()
    for capability in (80, 90)
]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("calls", "registers", "capability"),
    [
        *ON_BOTH,
        # Of two and four directions one each, as the latter take as long to compile as all above.
        pytest.param(partial(scans, torch.float32, 4, 448, 1, 3), 216, 80, id="scan of T2 in four directions-80"),
        pytest.param(partial(scans, torch.float32, 2, 448, 1, 3), 208, 90, id="scan of T2-90"),
    ],
)
def test_the_kernels_compile_without_spills_or_atomics(
    calls: Callable[[], list[Launch]], registers: int, capability: int, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton", reason="Triton is for Linux")
    of_gradients = 32 if TorchVersion(triton.__version__) < "3.8" else 0  # bytes of stack
    for launch in calls():
        code, is_backward = compiled(launch, capability).asm, launch.kernel.__name__ == "_backward"
        assert not re.search(r"\b(atom|red)\.", code["ptx"]), launch.kernel  # the same bits in every run
        used = resources(code["cubin"], tmp_path)
        assert used["STACK"] <= (of_gradients if is_backward else 0), launch.kernel
        assert not used["LOCAL"], launch.kernel
        # The scan's gradients take all that a thread can have.
        assert 0 < used["REG"] <= (255 if is_backward else registers), launch.kernel


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("capability", [80, 90])
def test_what_a_scan_s_position_costs(capability: int, tmp_path: Path) -> None:
    """Instructions for a channel and position, of S6's in half precision: they bound its speed, not the memory."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    found = {}
    for launch in scans(torch.float16, directions=2, width=320, d_state=1, side=14):
        name, constants = launch.kernel.__name__, launch.constants
        if constants.get("R"):
            a_thread_s = constants["BLOCK_T"] * constants["BLOCK_D"] / (32 * launch.num_warps)
            of_loops = loops(compiled(launch, capability).asm["cubin"], tmp_path)
            assert len(of_loops) == (2 if name == "_forward" else 4)  # for both directions
            found[name] = sum(of_loops) / 2 / a_thread_s
    assert found.keys() == {"_forward", "_backward"}
    assert 20 < found["_forward"] <= 40
    assert 100 < found["_backward"] <= 206  # the latter with Triton 3.6 for sm_80


@pytest.mark.usefixtures("cache")
def test_what_a_pixel_of_the_first_convolution_costs(tmp_path: Path) -> None:
    """Instructions of a warp for a pixel of S6's in half precision; 23 take as long as the bytes, and 3.6 has 10."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    (launch,) = stems(torch.float16, 224, 24)
    (of_tile,) = loops(compiled(launch, 90).asm["cubin"], tmp_path)
    assert 8 < of_tile * launch.num_warps / launch.constants["BLOCK_P"] <= 23


# What the compiled code computes, without a GPU

#: Which of ``triton_numbers`` run as compiled, mostly by what the tests above have compiled already, and which share of
#: the 32 bytes that go between a warp and the memory at a time must be asked for.
AS_COMPILED: dict[str, tuple[str, tuple[object, ...], float]] = {
    "scan of S6": ("test_low_rank_step_sizes", (1, (2, 14), 2, 64, 1, 10, torch.float16), 0.8),
    "large scan": ("test_low_rank_step_sizes", (1, (2, 16), 2, 32, 16, 17, torch.bfloat16), 0.9),
    "scan of T2": ("test_low_rank_step_sizes", (1, (3, 3), 2, 64, 1, 14, torch.float32), 0.9),
    "scan, norm and gate": ("test_scan_norm_gate", ((2, 14), 2, 64, 1, 10, torch.float16), 0.6),
    "wavelet of S6": ("test_wavelet_conv", (1, (5, 6), 48, 7, torch.float16), 1.0),
    "odd wavelet": ("test_wavelet_conv", (1, (5, 7), 35, 5, torch.bfloat16), 0.7),
    "depthwise": ("test_depthwise", ((5, 14), 3, 48, 2, torch.float16), 1.0),
    "stem": ("test_stem_conv", ((5, 7), 3, 3, 24, 2, torch.float16), 0.5),
}


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", AS_COMPILED)
def test_as_compiled(name: str) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    test, arguments, share = AS_COMPILED[name]
    with launches_by_ptx(90) as machines:
        getattr(import_module("tests.ops.triton_numbers"), test)(*arguments)
    assert machines
    for machine in machines:
        assert machine.tensors.needed >= share * machine.tensors.sectors
        assert machine.shared.turns <= 1.04 * machine.shared.least  # hardly any wait for a bank


# Where it runs


@pytest.mark.parametrize(
    ("device", "dtype", "d_state", "reason"),
    [
        ("cpu", torch.float32, 1, "the tensors are on cpu, and its kernels need cuda"),
        ("cuda", torch.float64, 1, "its kernels compute in single precision, not in float64"),
        ("cuda", torch.float32, 17, "d_state=17 exceeds the kernels' 16"),
        ("cuda", torch.float32, 16, None),
        ("cuda", torch.bfloat16, 1, "its kernels need compute capability 8.0 for bfloat16, and this is 7.5"),
    ],
)
def test_it_says_why_not(
    device: str, dtype: torch.dtype, d_state: int, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(jit, "_why_no_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert scan.unavailable(torch.device(device), dtype, d_state) == reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    with pytest.raises(
        BackendUnavailableError, match=r"'triton' cannot run here: Triton cannot reach a GPU \(.*\)"
    ) as e:
        BACKENDS.choose("triton", CUDA, torch.float32)
    assert "\n" not in str(e.value)


def test_a_driver_that_fails_without_a_word_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise AssertionError

    monkeypatch.setattr(jit, "import_module", fails)
    assert jit._why_no_driver.__wrapped__() == "Triton cannot reach a GPU (AssertionError)"


def test_without_triton_the_scan_is_plain_pytorch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "find_spec", lambda name: None)
    forget_choices()
    kernel = BACKENDS.explain("auto", CUDA, torch.float32, d_state=1)
    assert kernel.runs in ("chunked", "mamba_ssm")
    assert "Triton is not installed" in (scan.unavailable(CUDA, torch.float32) or "")
    with pytest.raises(BackendUnavailableError, match="Triton is not installed"):
        BACKENDS.choose("triton", CUDA, torch.float32)


def test_auto_takes_it_on_a_gpu_for_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(jit, "_why_no_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("mobilemamba.ops.selective_scan.mamba_ssm._kernel", lambda: sys)  # as if it were installed
    forget_choices()
    for d_state, backend in ((1, "triton"), (16, "triton"), (17, "mamba_ssm"), (257, "chunked")):
        assert BACKENDS.choose("auto", CUDA, torch.bfloat16, d_state=d_state).name == backend
