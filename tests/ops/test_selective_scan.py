"""Every scan backend against the loop that defines the scan, and the loop against the equation."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.ops.selective_scan import chunked, selective_scan
from mobilemamba.ops.selective_scan.definition import ScanInputs, selective_scan_reference
from tests.ops import recurrences
from tests.ops.recurrences import gradients
from tests.ops.scans import (
    NAMES,
    NATIVE,
    assert_near,
    assert_rounds_to,
    make_inputs,
    needs_native,
    poisoned_memory,
    threads,
)

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}  # error over the largest element


def assert_same(scan: Callable[..., Tensor], inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Output and all seven gradients as the reference has them, in the inputs' precision."""
    recurrences.assert_same(scan, selective_scan_reference, inputs, tolerance)


def chunked_scan(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs, backend="chunked")


def native_scan(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs, backend="native")


SCANS = [pytest.param(native_scan, id="native", marks=needs_native), pytest.param(chunked_scan, id="chunked")]
LENGTHS = [1, 2, 7, 49, 196, 225]
SHAPES = [(2, 2, 3, 1), (1, 4, 2, 3), (3, 1, 5, 16), (0, 2, 3, 1)]  # batch, directions, width, state


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
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunked_equals_reference(shape: tuple[int, int, int, int], length: int) -> None:
    assert_same(chunked_scan, make_inputs(*shape, length))


@settings(max_examples=25)
@given(*(st.integers(low, high) for low, high in ((0, 3), (1, 4), (1, 5), (1, 4), (1, 40))), st.booleans())
def test_chunked_equals_reference_for_any_shape(
    batch: int, directions: int, width: int, d_state: int, length: int, wide: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_WIDE_STEP_CPU", 0 if wide else 1 << 62)
        assert_same(chunked_scan, make_inputs(batch, directions, width, d_state, length))


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("scan", SCANS)
def test_an_empty_sequence_gives_an_empty_sequence_and_zero_gradients(scan: Callable[..., Tensor]) -> None:
    inputs = make_inputs(2, 2, 3, 4, 0, torch.float32)
    with poisoned_memory():
        y = scan(*inputs)
        grads = gradients(scan, inputs, y)
    assert y.shape == selective_scan_reference(*inputs).shape == (2, 2, 3, 0)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
    assert not any(g.any() for g in grads)  # NaN is true


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


# The compiled kernel, which has no double precision


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 16, 1), (1, 2, 100, 2)], ids=str)
def test_native_equals_reference(shape: tuple[int, int, int, int], length: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, length, dtype)
    assert_rounds_to(native_scan, selective_scan_reference, inputs, ROUNDING[dtype])


@needs_native
@settings(max_examples=50)
@given(
    *(st.integers(low, high) for low, high in ((0, 3), (1, 5), (1, 70), (1, 6), (1, 40))),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_native_equals_reference_for_any_shape(
    batch: int, directions: int, width: int, d_state: int, length: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)  # so that an example by itself can be repeated
    inputs = make_inputs(batch, directions, width, d_state, length, dtype)
    assert_rounds_to(native_scan, selective_scan_reference, inputs, ROUNDING[dtype])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_native_writes_every_element(dtype: torch.dtype) -> None:
    inputs = make_inputs(2, 3, 70, 2, 30, dtype)
    with poisoned_memory():
        y = native_scan(*inputs)
        grads = gradients(native_scan, inputs, torch.ones_like(y))
    assert not any(x.isnan().any() for x in (y, *grads))


@needs_native
@pytest.mark.parametrize("shape", [(1, 2, 200, 2, 30), (5, 3, 17, 1, 30)], ids=str)
def test_native_gives_the_same_bits_in_every_run_and_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape, dtype=torch.float32)
    weights = torch.randn(inputs[0].shape)
    results = []
    for number in (1, 1, 2, 3, 3):
        with threads(number):
            results.append((native_scan(*inputs), *gradients(native_scan, inputs, weights)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Any tensors


def test_skip_and_bias_may_be_left_out() -> None:
    u, dt, A, B, C, D, dt_bias = make_inputs(2, 2, 3, 1, 9)
    y = selective_scan(u, dt, A, B, C)
    torch.testing.assert_close(
        y, selective_scan_reference(u, dt, A, B, C, torch.zeros_like(D), torch.zeros_like(dt_bias))
    )


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x.new_full(x.shape, torch.nan)], -1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    return x[..., :1].expand_as(x)


def overlapping(x: Tensor) -> Tensor:
    """Windows of one row of numbers: neighbours in memory, and the same numbers several times."""
    return torch.randn(x.numel() + 1, dtype=x.dtype).as_strided(x.shape, [*range(x.ndim - 1, 0, -1), 1])


@pytest.mark.parametrize(
    "arrange", [transposed, channels_last, every_other, expanded, overlapping], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scan", SCANS)
def test_inputs_and_gradients_of_any_strides(
    scan: Callable[..., Tensor], dtype: torch.dtype, arrange: Callable[[Tensor], Tensor]
) -> None:
    inputs = [arrange(x.detach()) for x in make_inputs(3, 2, 20, 4, 10, dtype)]
    inputs[2] = -inputs[2].abs()
    assert not any(x.is_contiguous() for x in inputs[:2])
    assert scan(*inputs).is_contiguous()
    assert_rounds_to(scan, selective_scan_reference, inputs, ROUNDING[dtype])
    weights = arrange(torch.randn(3, 2, 20, 10).to(dtype))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    pairs = zip(
        NAMES,
        gradients(scan, [x.requires_grad_() for x in inputs], weights),
        gradients(selective_scan_reference, exact, weights),
        strict=True,
    )
    for name, ours, theirs in pairs:
        assert_near(ours, theirs, ROUNDING[dtype], f"gradient of {name}")


@pytest.mark.parametrize("scan", SCANS)
def test_inputs_are_left_as_they_were(scan: Callable[..., Tensor]) -> None:
    inputs = make_inputs(2, 2, 3, 4, 10, torch.float32)
    before = [x.detach().clone() for x in inputs]
    gradients(scan, inputs, torch.ones(2, 2, 3, 10))
    assert all(torch.equal(x, old) for x, old in zip(inputs, before, strict=True))


@pytest.mark.parametrize("backend", [NATIVE, "chunked", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=["bf16", "fp16"])
def test_half_precision_is_rounded_once_at_the_end(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    half = make_inputs(2, 2, 4, 2, 49, dtype)
    single = [x.detach().float() for x in half]
    y = selective_scan(*half, backend=backend)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), selective_scan_reference(*single), rtol=tolerance, atol=tolerance / 100)
    y.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() for x in half)


@pytest.mark.parametrize("scan", SCANS)
def test_autocast_leaves_the_scan_in_fp32(scan: Callable[..., Tensor]) -> None:
    inputs = make_inputs(2, 2, 4, 2, 49, torch.float32)
    weights = torch.randn(2, 2, 4, 49)
    y, grads = scan(*inputs), gradients(scan, inputs, weights)
    with torch.autocast("cpu", torch.bfloat16):
        y_cast, grads_cast = scan(*inputs), gradients(scan, inputs, weights)
    assert y_cast.dtype == torch.float32
    assert torch.equal(y, y_cast)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_cast, strict=True))


# Cost


@pytest.mark.parametrize("length", [64, 256])
@pytest.mark.parametrize("scan", SCANS)
def test_memory_kept_for_backward_is_the_inputs(scan: Callable[..., Tensor], length: int) -> None:
    inputs = make_inputs(1, 2, 4, 8, length, torch.float32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(*inputs)
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


@pytest.mark.parametrize("scan", SCANS)
def test_backward_has_no_node_a_step(scan: Callable[..., Tensor]) -> None:
    sizes = {graph_size(scan(*make_inputs(1, 1, 2, 1, length, torch.float32))) for length in (2, 16, 256)}
    assert len(sizes) == 1
    assert max(sizes) <= 10 + len(NAMES)  # the scan and the ways into its layout, and one for each input's gradient


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_number_of_launches_grows_with_the_root_of_the_length(pass_: str) -> None:
    def launches(length: int) -> int:
        inputs = [x.detach() for x in make_inputs(1, 1, 2, 1, length)]
        inputs = [x.transpose(2, 3) if x.ndim == 4 else x for x in inputs]
        with torch.profiler.profile() as profile:
            if pass_ == "forward":
                chunked.forward(ScanInputs(*inputs), ())
            else:
                chunked.backward(torch.ones(1, 1, length, 2), ScanInputs(*inputs), ())
        return sum(event.name.startswith("aten::addcmul") for event in profile.events() or [])

    few, many = launches(64), launches(64 * 16)
    assert few > 0
    assert many <= 5 * few  # not 16 times


@pytest.mark.parametrize(("directions", "d_state"), [(2, 1), (4, 16)])
@pytest.mark.parametrize("scan", SCANS)
def test_flop_formula(scan: Callable[..., Tensor], directions: int, d_state: int) -> None:
    width, length = 6, 49
    inputs = [x.detach() for x in make_inputs(1, directions, width, d_state, length, torch.float32)]
    with FlopCounterMode(display=False) as counter:
        scan(*inputs)
    all_channels = directions * width
    assert counter.get_total_flops() == 2 * (9 * length * all_channels * d_state + length * all_channels)


# One operator for torch.compile and torch.export


@pytest.mark.parametrize("backend", [NATIVE, "chunked"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 2, 9), (1, 1, 1, 1, 1)], ids=str)
def test_opcheck(shape: tuple[int, ...], backend: str) -> None:
    inputs = make_inputs(*shape, dtype=torch.float32)
    inputs = [x.detach().transpose(2, 3).requires_grad_() if x.ndim == 4 else x for x in inputs]
    torch.library.opcheck(torch.ops.mobilemamba.selective_scan.default, (*inputs, 0, 0, backend))
    backward_inputs = [torch.ones_like(inputs[0]), *(x.detach() for x in inputs), 0, 0, backend]
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
    called = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("mobilemamba")]
    assert called == ["mobilemamba.selective_scan.default"]
    torch.testing.assert_close(program.module()(*inputs), selective_scan_reference(*inputs))
