"""Every scan backend against the loop that defines the scan, and the loop against the equation."""

import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.ops import selective_scan as dispatcher
from mobilemamba.ops.selective_scan import BACKEND_NAMES, chunked, mamba_ssm, selective_scan
from mobilemamba.ops.selective_scan.reference import selective_scan_reference

NAMES = ("u", "dt", "A", "B", "C", "D", "dt_bias")


def make_inputs(
    batch: int, directions: int, width: int, d_state: int, length: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random inputs of a stable recurrence, each a leaf that wants its gradient."""
    B, K, D, N, L = batch, directions, width, d_state, length
    shapes = ((B, K, D, L), (B, K, D, L), (K, D, N), (B, K, N, L), (B, K, N, L), (K, D), (K, D))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs[2] = -torch.exp(0.5 * inputs[2])
    return [x.to(dtype).requires_grad_() for x in inputs]


def gradients(scan: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((scan(*inputs) * weights).sum(), inputs)


def assert_same(scan: Callable[..., Tensor], inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Output and all seven gradients as the reference has them."""
    y, expected = scan(*inputs), selective_scan_reference(*inputs)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(expected)
    pairs = zip(
        NAMES, gradients(scan, inputs, weights), gradients(selective_scan_reference, inputs, weights), strict=True
    )
    for name, ours, theirs in pairs:
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def chunked_scan(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs, backend="chunked")


@pytest.fixture(params=[0, 1 << 62], ids=["one-chunk", "many-chunks"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the choice that a CPU otherwise makes by the width of a step."""
    monkeypatch.setattr(chunked, "_WIDE_STEP_CPU", request.param)


# The definition


def test_reference_computes_the_equation() -> None:
    inputs = make_inputs(2, 2, 3, 2, 5)
    u, dt, A, B, C, D, dt_bias = (x.detach().numpy() for x in inputs)
    y = selective_scan_reference(*inputs).detach().numpy()
    for b, k, d in itertools.product(range(2), range(2), range(3)):
        state = [0.0, 0.0]
        for t in range(5):
            delta = math.log1p(math.exp(dt[b, k, d, t] + dt_bias[k, d]))
            expected = D[k, d] * u[b, k, d, t]
            for n in range(2):
                state[n] = math.exp(delta * A[k, d, n]) * state[n] + delta * B[b, k, n, t] * u[b, k, d, t]
                expected += C[b, k, n, t] * state[n]
            assert y[b, k, d, t] == pytest.approx(expected, rel=1e-12)


def test_reference_by_hand() -> None:
    """One channel, delta = 1: the state halves at each step and takes in twice the input."""
    ones = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    u = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    A = torch.full((1, 1, 1), -math.log(2), dtype=torch.float64)
    D, bias = torch.full((1, 1), 10.0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    dt = ones * math.log(math.e - 1)  # softplus of it is 1
    y = selective_scan(u, dt, A, 2 * ones, ones, D, bias, backend="reference")
    torch.testing.assert_close(y.flatten(), torch.tensor([2.0 + 10, 1.0, 6.5 + 30], dtype=torch.float64))


# The chunked algorithm


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("length", [1, 2, 7, 49, 196, 225])
@pytest.mark.parametrize(
    ("batch", "directions", "width", "d_state"),
    [(2, 2, 3, 1), (1, 4, 2, 3), (3, 1, 5, 16), (0, 2, 3, 1)],
    ids=lambda value: str(value),
)
def test_chunked_equals_reference(batch: int, directions: int, width: int, d_state: int, length: int) -> None:
    assert_same(chunked_scan, make_inputs(batch, directions, width, d_state, length))


@settings(max_examples=25, deadline=None)
@given(*(st.integers(low, high) for low, high in ((0, 3), (1, 4), (1, 5), (1, 4), (1, 40))), st.booleans())
def test_chunked_equals_reference_for_any_shape(
    batch: int, directions: int, width: int, d_state: int, length: int, wide: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_WIDE_STEP_CPU", 0 if wide else 1 << 62)
        assert_same(chunked_scan, make_inputs(batch, directions, width, d_state, length))


@pytest.mark.usefixtures("chunking")
def test_an_empty_sequence_gives_an_empty_sequence_and_zero_gradients() -> None:
    inputs = make_inputs(2, 2, 3, 4, 0)
    y = chunked_scan(*inputs)
    assert y.shape == selective_scan_reference(*inputs).shape == (2, 2, 3, 0)
    assert all(not gradient.any() for gradient in gradients(chunked_scan, inputs, y))


@pytest.mark.usefixtures("chunking")
def test_chunked_gradcheck() -> None:
    assert torch.autograd.gradcheck(chunked_scan, make_inputs(2, 2, 2, 2, 7))


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("length", [0, 1, 5, 16, 17])
def test_linear_recurrence(length: int, reverse: bool) -> None:
    decay, drive = torch.rand(length, 2, 3, dtype=torch.float64), torch.randn(length, 2, 3, dtype=torch.float64)
    expected, h = torch.zeros_like(drive), torch.zeros(2, 3, dtype=torch.float64)
    for t in reversed(range(length)) if reverse else range(length):
        h = expected[t] = decay[t] * h + drive[t]
    torch.testing.assert_close(chunked.linear_recurrence(decay, drive, reverse), expected)


@pytest.mark.usefixtures("chunking")
def test_strong_decay_neither_overflows_nor_divides_by_zero() -> None:
    inputs = make_inputs(1, 1, 4, 2, 100, torch.float32)
    with torch.no_grad():
        inputs[1] += 80  # exp(delta A) underflows to zero, and so do its products
    assert_same(chunked_scan, inputs, tolerance=1e-4)
    assert all(g.isfinite().all() for g in gradients(chunked_scan, inputs, torch.ones(1, 1, 4, 100)))


# Any tensors


def test_skip_and_bias_may_be_left_out() -> None:
    u, dt, A, B, C, D, dt_bias = make_inputs(2, 2, 3, 1, 9)
    y = selective_scan(u, dt, A, B, C)
    torch.testing.assert_close(
        y, selective_scan_reference(u, dt, A, B, C, torch.zeros_like(D), torch.zeros_like(dt_bias))
    )


def test_inputs_need_not_be_contiguous() -> None:
    inputs = make_inputs(2, 2, 3, 4, 10)
    strided = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    y = chunked_scan(*strided)
    assert y.is_contiguous()
    assert_same(chunked_scan, strided)


def test_inputs_are_left_as_they_were() -> None:
    inputs = make_inputs(2, 2, 3, 4, 10)
    before = [x.detach().clone() for x in inputs]
    gradients(chunked_scan, inputs, torch.ones(2, 2, 3, 10))
    assert all(torch.equal(x, old) for x, old in zip(inputs, before, strict=True))


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=["bf16", "fp16"])
def test_half_precision_is_rounded_once_at_the_end(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    half = make_inputs(2, 2, 4, 2, 49, dtype)
    single = [x.detach().float() for x in half]
    y = selective_scan(*half, backend=backend)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), selective_scan_reference(*single), rtol=tolerance, atol=tolerance / 100)
    y.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() for x in half)


def test_autocast_leaves_the_scan_in_fp32() -> None:
    inputs = make_inputs(2, 2, 4, 2, 49, torch.float32)
    weights = torch.randn(2, 2, 4, 49)
    y, grads = chunked_scan(*inputs), gradients(chunked_scan, inputs, weights)
    with torch.autocast("cpu", torch.bfloat16):
        y_cast, grads_cast = chunked_scan(*inputs), gradients(chunked_scan, inputs, weights)
    assert y_cast.dtype == torch.float32
    assert torch.equal(y, y_cast)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_cast, strict=True))


# Cost


@pytest.mark.parametrize("length", [64, 256])
def test_memory_kept_for_backward_is_the_inputs(length: int) -> None:
    inputs = make_inputs(1, 2, 4, 8, length)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_scan(*inputs)
    assert {t.data_ptr() for t in kept} <= {x.data_ptr() for x in inputs}
    assert sum(t.nbytes for t in kept) <= sum(x.nbytes for x in inputs)


def graph_size(y: Tensor) -> int:
    """Number of autograd nodes that y stands on."""
    seen, front = set(), [y.grad_fn]
    while front:
        node = front.pop()
        if node is not None and node not in seen:
            seen.add(node)
            front.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def test_backward_has_no_node_a_step() -> None:
    sizes = {graph_size(chunked_scan(*make_inputs(1, 1, 2, 1, length))) for length in (1, 16, 256)}
    assert sizes == {1 + len(NAMES)}  # the scan, and one node for each input's gradient


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_number_of_launches_grows_with_the_root_of_the_length(pass_: str) -> None:
    def launches(length: int) -> int:
        inputs = [x.detach() for x in make_inputs(1, 1, 2, 1, length)]
        with torch.profiler.profile() as profile:
            if pass_ == "forward":
                chunked.forward(*inputs)
            else:
                chunked.backward(torch.ones(1, 1, 2, length), *inputs)
        return sum(event.name.startswith("aten::addcmul") for event in profile.events() or [])

    few, many = launches(64), launches(64 * 16)
    assert few > 0
    assert many <= 5 * few  # not 16 times


@pytest.mark.parametrize(("directions", "d_state"), [(2, 1), (4, 16)])
def test_flop_formula(directions: int, d_state: int) -> None:
    width, length = 6, 49
    inputs = [x.detach() for x in make_inputs(1, directions, width, d_state, length)]
    with FlopCounterMode(display=False) as counter:
        chunked_scan(*inputs)
    all_channels = directions * width
    assert counter.get_total_flops() == 2 * (9 * length * all_channels * d_state + length * all_channels)


# One operator for torch.compile and torch.export


@pytest.mark.parametrize("shape", [(2, 2, 3, 2, 9), (1, 1, 1, 1, 1)], ids=str)
def test_opcheck(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape, dtype=torch.float32)
    torch.library.opcheck(torch.ops.mobilemamba.selective_scan.default, (*inputs, "chunked"))
    backward_inputs = [torch.ones_like(inputs[0]), *(x.detach() for x in inputs), "chunked"]
    torch.library.opcheck(torch.ops.mobilemamba.selective_scan_backward.default, backward_inputs)


class Scan(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return selective_scan(*inputs)


def test_compile_without_graph_breaks() -> None:
    inputs = make_inputs(2, 2, 3, 1, 9, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    assert_same(compiled, inputs, tolerance=1e-5)


def test_export_keeps_one_node() -> None:
    inputs = tuple(x.detach() for x in make_inputs(2, 2, 3, 1, 9, torch.float32))
    program = torch.export.export(Scan(), inputs)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["mobilemamba.selective_scan.default"]
    torch.testing.assert_close(program.module()(*inputs), selective_scan_reference(*inputs))


# Choosing a backend


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Forgets what was probed and announced before, and after."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    dispatcher._auto_backend.cache_clear()
    mamba_ssm._kernel.cache_clear()


@pytest.fixture
def no_kernel(fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # its import fails


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown scan backend 'fast'") as error:
        selective_scan(*make_inputs(1, 1, 1, 1, 1), backend="fast")
    assert all(name in str(error.value) for name in BACKEND_NAMES)


@pytest.mark.usefixtures("no_kernel")
def test_explicit_backend_never_falls_back() -> None:
    with pytest.raises(BackendUnavailableError, match="selective_scan_cuda does not import") as error:
        selective_scan(*make_inputs(1, 1, 1, 1, 1), backend="mamba_ssm")
    assert "backend='auto'" in str(error.value)
    assert "mobilemamba backends" in str(error.value)


@pytest.mark.usefixtures("no_kernel")
def test_auto_says_once_what_runs_and_why_nothing_faster(caplog: pytest.LogCaptureFixture) -> None:
    inputs = make_inputs(1, 1, 1, 1, 4)
    with caplog.at_level(logging.INFO, logger="mobilemamba"):
        for _ in range(3):
            selective_scan(*inputs)
    (record,) = caplog.records
    assert "selective scan on cpu: chunked" in record.message
    assert "not mamba_ssm: its kernel selective_scan_cuda does not import" in record.message


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

    y = mamba_ssm.forward(*inputs)
    assert y.dtype == dtype
    torch.testing.assert_close(y, selective_scan_reference(*inputs), rtol=tolerance, atol=tolerance)

    grads = mamba_ssm.backward(weights, *inputs)
    for x, ours, theirs in zip(inputs, grads, gradients(selective_scan_reference, inputs, weights), strict=True):
        assert (ours.dtype, ours.shape) == (x.dtype, x.shape)
        assert ours.is_contiguous()
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm() + 1e-6


@pytest.mark.usefixtures("stand_in_kernel")
@pytest.mark.parametrize(
    ("device", "d_state", "reason"),
    [("cpu", 1, "the tensors are on cpu"), ("cuda", 257, "d_state=257 exceeds the kernel's 256"), ("cuda", 256, None)],
)
def test_adapter_says_why_not(device: str, d_state: int, reason: str | None) -> None:
    found = mamba_ssm.why_not(torch.device(device), d_state)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.usefixtures("stand_in_kernel")
def test_auto_takes_the_kernel_on_cuda_and_chunked_for_large_states() -> None:
    cuda = torch.device("cuda")
    assert dispatcher.resolve_backend("auto", cuda, 16) == "mamba_ssm"
    assert dispatcher.resolve_backend("auto", cuda, 257) == "chunked"
