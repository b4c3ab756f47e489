"""How a scan backend is chosen, and the adapter to mamba-ssm's kernel."""

import logging
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.ops.backends import forget_choices
from mobilemamba.ops.native import library
from mobilemamba.ops.selective_scan import BACKENDS, definition, mamba_ssm, selective_scan
from mobilemamba.ops.selective_scan.definition import ScanInputs, selective_scan_reference
from tests.ops.recurrences import gradients
from tests.ops.scans import (
    NAMES,
    make_inputs,
    make_map_inputs,
    needs_native,
)

pytestmark = pytest.mark.kernels

# Choosing a backend


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Forgets what was probed and announced before, and after."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    forget_choices()
    mamba_ssm._kernel.cache_clear()
    library._load.cache_clear()


@pytest.fixture
def no_kernel(fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # its import fails


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown scan backend 'fast'") as error:
        selective_scan(*make_inputs(1, 1, 1, 1, 1), backend="fast")
    assert all(name in str(error.value) for name in BACKENDS.names)


@pytest.mark.usefixtures("no_kernel")
def test_explicit_backend_never_falls_back() -> None:
    with pytest.raises(BackendUnavailableError, match="selective_scan_cuda does not import") as error:
        selective_scan(*make_inputs(1, 1, 1, 1, 1), backend="mamba_ssm")
    assert "backend='auto'" in str(error.value)
    assert "mobilemamba backends" in str(error.value)


@pytest.mark.usefixtures("no_kernel")
def test_auto_says_once_what_runs_and_why_nothing_faster(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEMAMBA_NATIVE", "0")
    inputs = make_inputs(1, 1, 1, 1, 4, torch.float32)
    with caplog.at_level(logging.INFO, logger="mobilemamba"):
        for _ in range(3):
            selective_scan(*inputs)
    (record,) = caplog.records
    assert "scan on cpu: chunked" in record.message
    assert "not mamba_ssm: its kernel selective_scan_cuda does not import" in record.message
    assert "not native: switched off by MOBILEMAMBA_NATIVE=0" in record.message


@needs_native
@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        (torch.float32, "native"),
        (torch.bfloat16, "native"),
        (torch.float16, "native"),
        (torch.float64, "chunked"),
    ],
    ids=str,
)
def test_auto_takes_the_compiled_kernel_on_a_cpu_for_what_it_computes(dtype: torch.dtype, backend: str) -> None:
    assert BACKENDS.choose("auto", torch.device("cpu"), dtype).name == backend
    inputs = [x.detach() for x in make_inputs(2, 2, 20, 2, 9, dtype)]
    assert torch.equal(selective_scan(*inputs), selective_scan(*inputs, backend=backend))


@needs_native
@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cuda", torch.float32, "the compiled kernels are for the CPU, not for cuda"),
        ("meta", torch.float32, "the compiled kernels are for the CPU, not for meta"),
        ("cpu", torch.float64, "the compiled kernels compute in single precision"),
    ],
)
def test_the_compiled_kernel_says_why_not(device: str, dtype: torch.dtype, reason: str) -> None:
    with pytest.raises(BackendUnavailableError, match=f"scan backend 'native' cannot run here: {reason}. Use") as error:
        BACKENDS.choose("native", torch.device(device), dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", range(1, 7), ids=NAMES[1:])
def test_wrong_shape_is_named(position: int) -> None:
    inputs = make_inputs(2, 2, 3, 4, 5)
    inputs[position] = torch.zeros(*inputs[position].shape[:-1], 9)
    if NAMES[position] == "A":  # its last axis is free: it sets the state size
        inputs[position] = torch.zeros(2, 9, 4)
    with pytest.raises(ConfigError, match=rf"{NAMES[position]} has shape \(.*\b9\b.*must be \("):
        selective_scan(*inputs)


# The adapter to mamba-ssm's kernel, with a stand-in that checks the kernel's contract


class StandInKernel(ModuleType):
    """``selective_scan_cuda`` by the reference; refuses what the kernel would refuse, but for the device."""

    def fwd(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        self._check(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        y = self._scan(u, delta, A, B, C, D, delta_bias)
        return [y, torch.full((1,), 42.0)]

    def bwd(self, u, delta, A, B, C, D, z, delta_bias, dout, states, out, dz, delta_softplus, recompute_out_z):
        self._check(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        assert dout.dtype == u.dtype
        assert dout.shape == u.shape
        assert dout.stride(-1) == 1
        assert states.item() == 42.0  # those of this kernel's forward pass
        assert out is None
        assert dz is None
        assert recompute_out_z is False
        inputs = [x.detach().requires_grad_() for x in (u, delta, A, B, C, D, delta_bias)]
        with torch.enable_grad():
            return list(torch.autograd.grad(self._scan(*inputs), inputs, dout))

    @staticmethod
    def _check(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> None:
        batch, channels, length = u.shape
        groups, d_state = B.shape[1:3]
        assert channels % groups == 0
        assert z is None
        assert delta_softplus is True
        for tensor, shape in (
            (delta, (batch, channels, length)),
            (A, (channels, d_state)),
            (B, (batch, groups, d_state, length)),
            (C, (batch, groups, d_state, length)),
            (D, (channels,)),
            (delta_bias, (channels,)),
        ):
            assert tensor.shape == shape
        assert u.dtype in (torch.float32, torch.float16, torch.bfloat16)
        assert {x.dtype for x in (delta, B, C)} == {u.dtype}
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        assert all(x.stride(-1) == 1 for x in (u, delta, A, B, C, D, delta_bias))

    @staticmethod
    def _scan(u, delta, A, B, C, D, delta_bias):
        groups = B.shape[1]
        u, delta = (x.unflatten(1, (groups, -1)) for x in (u, delta))
        A, D, delta_bias = (x.unflatten(0, (groups, -1)) for x in (A, D, delta_bias))
        return selective_scan_reference(u, delta, A, B, C, D, delta_bias).flatten(1, 2)


@pytest.fixture
def stand_in_kernel(fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", StandInKernel("selective_scan_cuda"))


@pytest.mark.usefixtures("stand_in_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 1, 7), (1, 4, 2, 3, 9)], ids=str)
def test_adapter_keeps_the_kernels_contract(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, dtype=torch.float32)
    inputs[0] = inputs[0].detach().to(dtype).requires_grad_()  # as under autocast: u is half, the rest mixed
    inputs[3] = inputs[3].detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    weights = torch.randn(inputs[0].shape, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2

    by_position = ScanInputs(*(x.detach().transpose(2, 3) if x.ndim == 4 else x.detach() for x in inputs))
    y = mamba_ssm.forward(by_position, ()).transpose(2, 3)
    assert y.dtype == dtype
    torch.testing.assert_close(y, selective_scan_reference(*inputs), rtol=tolerance, atol=tolerance)

    grads = mamba_ssm.backward(weights.transpose(2, 3), by_position, ())
    for ours, theirs in zip(grads, gradients(selective_scan_reference, inputs, weights), strict=True):
        ours = ours.transpose(2, 3) if ours.ndim == 4 else ours
        assert ours.shape == theirs.shape
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm() + 1e-6


@pytest.mark.usefixtures("stand_in_kernel")
@pytest.mark.parametrize(
    ("device", "d_state", "dtype", "reason"),
    [
        ("cpu", 1, torch.float32, "the tensors are on cpu"),
        ("cuda", 257, torch.float32, "d_state=257 exceeds the kernel's 256"),
        ("cuda", 1, torch.float64, "its kernel knows no float64"),
        ("cuda", 256, torch.bfloat16, None),
    ],
)
def test_adapter_says_why_not(device: str, d_state: int, dtype: torch.dtype, reason: str | None) -> None:
    found = mamba_ssm.unavailable(torch.device(device), dtype, d_state)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.usefixtures("stand_in_kernel")
def test_auto_takes_the_kernel_on_cuda_for_more_states_than_triton_s_and_chunked_for_more_yet() -> None:
    cuda = torch.device("cuda")
    for d_state, backend in ((17, "mamba_ssm"), (257, "chunked")):
        assert BACKENDS.choose("auto", cuda, torch.float32, d_state=d_state).name == backend


@pytest.mark.usefixtures("stand_in_kernel")
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_adapter_scans_maps(directions: int) -> None:
    size = (3, 4)
    inputs = make_map_inputs(2, directions, 3, 2, size, torch.float32)
    weights = torch.randn(inputs[0].shape)
    expected = definition.forward(ScanInputs(*inputs), size)
    detached = ScanInputs(*(x.detach() for x in inputs))
    torch.testing.assert_close(mamba_ssm.forward(detached, size), expected, rtol=1e-4, atol=1e-5)
    theirs = torch.autograd.grad(expected, inputs, weights)
    ours = mamba_ssm.backward(weights, detached, size)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
