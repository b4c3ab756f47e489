"""The scan of a map by every backend against its definition, a loop over the positions in each direction's order."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.errors import ConfigError
from mobilemamba.ops.scan_order import scan_order
from mobilemamba.ops.selective_scan import BACKENDS, selective_scan_2d
from mobilemamba.ops.selective_scan.definition import selective_scan_reference
from tests.ops.recurrences import gradients
from tests.ops.scans import (
    NAMES,
    NATIVE,
    assert_near,
    assert_rounds_to,
    low_rank_scan,
    make_low_rank_inputs,
    make_map_inputs,
    needs_native,
    poisoned_memory,
    threads,
)

ON_CPU = [NATIVE, "chunked", "reference"]  # the names that run on a CPU
# (height, width), directions K, width D, state size N
CASES = [
    ((1, 1), 1, 1, 1),
    ((1, 7), 2, 16, 1),
    ((7, 1), 4, 17, 2),
    ((7, 7), 2, 48, 1),
    ((5, 3), 4, 31, 3),
    ((14, 14), 2, 5, 4),
    ((15, 15), 4, 80, 1),
    ((3, 8), 1, 130, 5),  # more than one group of channels in the kernel's backward pass
]


def scan(backend: str, size: tuple[int, int]) -> Callable[..., Tensor]:
    return lambda *inputs: selective_scan_2d(*inputs, size=size, backend=backend)


def definition(size: tuple[int, int]) -> Callable[..., Tensor]:
    """Each direction apart: its positions gathered, scanned by the loop, and put back."""

    def compute(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        y = torch.zeros_like(u)
        for k, order in enumerate(scan_order(A.shape[0], size).long()):
            steps = (x[:, order].mT.unsqueeze(1) for x in (u, dt[:, k]))
            projections = (x[:, k, order].mT.unsqueeze(1) for x in (B, C))
            one = slice(k, k + 1)
            scanned = selective_scan_reference(*steps, A[one], *projections, D[one], dt_bias[one])
            y = y.index_add(1, order, scanned[:, 0].mT)
        return y

    return compute


def tolerance(backend: str, dtype: torch.dtype) -> float:
    if dtype == torch.bfloat16:
        return 2**-8
    return 1e-5 if dtype == torch.float32 else 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize(("size", "directions", "width", "d_state"), CASES, ids=str)
def test_output_and_gradients(
    size: tuple[int, int], directions: int, width: int, d_state: int, backend: str, dtype: torch.dtype
) -> None:
    inputs = make_map_inputs(2, directions, width, d_state, size, dtype)
    assert_rounds_to(scan(backend, size), definition(size), inputs, tolerance(backend, dtype))


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_double_precision(backend: str) -> None:
    assert_rounds_to(scan(backend, (3, 5)), definition((3, 5)), make_map_inputs(2, 4, 3, 2, (3, 5)), 1e-12)


@settings(max_examples=25)
@given(
    *(st.integers(low, high) for low, high in ((0, 3), (1, 40), (1, 5), (1, 9), (1, 9))),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_any_shape(
    backend: str, batch: int, width: int, d_state: int, rows: int, columns: int, directions: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)  # so that an example by itself can be repeated
    inputs, size = make_map_inputs(batch, directions, width, d_state, (rows, columns), dtype), (rows, columns)
    assert_rounds_to(scan(backend, size), definition(size), inputs, tolerance(backend, dtype))


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(x: Tensor) -> Tensor:
    """Every channel beside the next, but amid others, as a slice of a projection is."""
    return torch.cat([x, x.new_full(x.shape, torch.nan)], -1)[..., : x.shape[-1]]


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x.new_full(x.shape, torch.nan)], -1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


def overlapping(x: Tensor) -> Tensor:
    """Windows of one row of numbers: neighbours in memory, and the same numbers several times."""
    strides = [sum(x.shape[i + 1 :]) or 1 for i in range(x.ndim)]
    return torch.randn(x.numel() + 1, dtype=x.dtype).as_strided(x.shape, strides)


@pytest.mark.parametrize("arrange", [transposed, sliced, every_other, expanded, overlapping], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_inputs_and_gradients_of_any_strides(
    arrange: Callable[[Tensor], Tensor], backend: str, dtype: torch.dtype
) -> None:
    size = (5, 3)
    inputs = [x.detach() for x in make_map_inputs(3, 2, 20, 2, size, dtype)]
    strided = [-arrange(x).abs() if i == 2 else arrange(x) for i, x in enumerate(inputs)]
    if arrange is not expanded:
        assert not strided[0].is_contiguous()
    assert_rounds_to(scan(backend, size), definition(size), strided, tolerance(backend, dtype))
    weights = arrange(torch.randn(3, 15, 20).to(dtype))
    exact = [x.detach().double().requires_grad_() for x in strided]
    pairs = zip(
        NAMES,
        gradients(scan(backend, size), [x.requires_grad_() for x in strided], weights),
        gradients(definition(size), exact, weights),
        strict=True,
    )
    for name, ours, theirs in pairs:
        assert_near(ours, theirs, tolerance(backend, dtype), f"gradient of {name}")


@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_nothing_to_scan(backend: str) -> None:
    for batch, size in ((0, (3, 2)), (2, (0, 3)), (0, (0, 0))):
        inputs = make_map_inputs(batch, 2, 5, 3, size, torch.float32)
        with poisoned_memory():
            y = scan(backend, size)(*inputs)
            grads = gradients(scan(backend, size), inputs, torch.ones_like(y))
        assert y.shape == inputs[0].shape
        assert [g.shape for g in grads] == [x.shape for x in inputs]
        assert not any(g.any() for g in grads)  # NaN is true


@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_inputs_of_several_precisions(backend: str) -> None:
    """As under autocast: what comes from a product is half, what comes from parameters is not."""
    inputs = make_map_inputs(2, 2, 20, 2, (4, 4), torch.float32)
    for i in (0, 3, 4):
        inputs[i] = inputs[i].detach().bfloat16().requires_grad_()
    # The kernel reads the step sizes in u's precision.
    assert_rounds_to(scan(backend, (4, 4)), definition((4, 4)), inputs, 2**-6)


@pytest.mark.parametrize("backend", ON_CPU)
def test_autocast_leaves_the_scan_as_it_is(backend: str) -> None:
    inputs, size = make_map_inputs(2, 2, 20, 2, (4, 4), torch.float32), (4, 4)
    weights = torch.randn(inputs[0].shape)
    plain = (scan(backend, size)(*inputs), *gradients(scan(backend, size), inputs, weights))
    with torch.autocast("cpu", torch.bfloat16):
        cast = (scan(backend, size)(*inputs), *gradients(scan(backend, size), inputs, weights))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


# Numbers at the edge


@pytest.mark.parametrize("shift", [-100.0, -30.0, 30.0, 100.0])
@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_extreme_step_sizes(backend: str, shift: float) -> None:
    inputs = make_map_inputs(2, 2, 20, 2, (5, 5), torch.float32)
    with torch.no_grad():
        inputs[1] += shift
    # Step sizes of 1e-44 are below what fp32 holds; nothing else here is that small.
    assert_rounds_to(scan(backend, (5, 5)), definition((5, 5)), inputs, 1e-5, least=1e-30)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1], ids=hex)
@pytest.mark.parametrize("position", range(7), ids=NAMES)
@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_nan_reaches_the_output(backend: str, position: int, bits: int) -> None:
    """Whatever its bits: the kernel's exponential works on them."""
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    inputs = [x.detach() for x in make_map_inputs(1, 1, 20, 1, (1, 5), torch.float32)]
    inputs[position].view(-1)[0] = nan
    y = scan(backend, (1, 5))(*inputs)[0]
    assert y[0, 0].isnan() or NAMES[position] == "A"  # which the first step need not read
    assert y[1:, 0].isnan().all() or NAMES[position] == "C"  # all others are in the state, or in each step
    assert y[:, 1:].isfinite().all() or NAMES[position] in "BC"  # which serve all channels


@pytest.mark.parametrize("position", [0, 3], ids=["u", "B"])
@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_infinity_reaches_the_output(backend: str, position: int) -> None:
    inputs = [x.detach().abs() for x in make_map_inputs(1, 1, 20, 1, (1, 5), torch.float32)]
    inputs[2].neg_()
    inputs[position].view(-1)[0] = torch.inf
    assert (scan(backend, (1, 5))(*inputs)[0, :, 0] == torch.inf).all()


# The same bits every time


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("batch", "width"), [(1, 200), (5, 17)], ids=str)
def test_same_bits_in_every_run_and_for_any_number_of_threads(batch: int, width: int, dtype: torch.dtype) -> None:
    size = (9, 7)
    inputs = make_map_inputs(batch, 4, width, 2, size, dtype)
    weights = torch.randn(inputs[0].shape).to(dtype)
    results = []
    for number in (1, 1, 2, 3, 3):
        with threads(number):
            y = scan("native", size)(*inputs)
            results.append((y, *gradients(scan("native", size), inputs, weights)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("size", "directions", "width", "d_state"), CASES, ids=str)
def test_every_element_is_written(
    size: tuple[int, int], directions: int, width: int, d_state: int, dtype: torch.dtype
) -> None:
    inputs = make_map_inputs(2, directions, width, d_state, size, dtype)
    with poisoned_memory():
        y = scan("native", size)(*inputs)
        grads = gradients(scan("native", size), inputs, torch.ones_like(y))
    assert not any(x.isnan().any() for x in (y, *grads))


# Mistakes


@pytest.mark.parametrize("position", range(7), ids=NAMES)
@pytest.mark.parametrize("backend", ON_CPU)
def test_wrong_shape_is_named(backend: str, position: int) -> None:
    inputs = [x.detach() for x in make_map_inputs(2, 2, 3, 4, (1, 5), torch.float32)]
    x = inputs[position]
    inputs[position] = torch.zeros(*x.shape[:1], 9, *x.shape[2:])
    with pytest.raises(ConfigError, match=rf"selective_scan_2d: {NAMES[position]} has shape \(.*\b9\b.*must be \("):
        scan(backend, (1, 5))(*inputs)


@pytest.mark.parametrize("backend", ON_CPU)
def test_size_that_is_not_the_length(backend: str) -> None:
    with pytest.raises(ConfigError, match=r"u has shape \(2, 12, 3\); .* it must be \(2, 16, 3\)"):
        scan(backend, (4, 4))(*make_map_inputs(2, 2, 3, 1, (3, 4), torch.float32))


@pytest.mark.parametrize("backend", ON_CPU)
def test_number_of_directions_that_there_is_not(backend: str) -> None:
    with pytest.raises(ConfigError, match="3 scan directions; expected 1, 2 or 4"):
        scan(backend, (3, 4))(*make_map_inputs(2, 3, 3, 1, (3, 4), torch.float32))


# One operator for torch.compile, torch.export and the counter


class Scan2d(nn.Module):
    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend

    def forward(self, *inputs: Tensor) -> Tensor:
        return selective_scan_2d(*inputs, size=(2, 3), backend=self.backend)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arrange", [torch.clone, transposed, sliced], ids=lambda f: f.__name__)
def test_opcheck(arrange: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    inputs = [arrange(x.detach()) for x in make_map_inputs(2, 2, 3, 2, (2, 3), dtype)]
    scan, backward = torch.ops.mobilemamba.selective_scan.default, torch.ops.mobilemamba.selective_scan_backward.default
    torch.library.opcheck(scan, [*(x.requires_grad_() for x in inputs), 2, 3, "native"])
    without = [x.detach() for x in inputs]
    torch.library.opcheck(backward, [torch.ones_like(without[0]), *without, 2, 3, "native"])


@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_compile_without_graph_breaks(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Scan2d(backend), fullgraph=True, backend="aot_eager")
    assert_rounds_to(compiled, definition((2, 3)), make_map_inputs(2, 2, 20, 1, (2, 3), torch.float32), 1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ON_CPU[:2])
def test_export_keeps_one_node(backend: str) -> None:
    inputs = tuple(x.detach() for x in make_map_inputs(2, 2, 20, 1, (2, 3), torch.float32))
    program = torch.export.export(Scan2d(backend), inputs)
    called = [str(n.target) for n in program.graph.nodes if "mobilemamba" in str(n.target)]
    assert called == ["mobilemamba.selective_scan.default"]
    exact = [x.double() for x in inputs]
    assert_near(program.module()(*inputs), definition((2, 3))(*exact), 1e-5)
    assert_near(scan(backend, (2, 3))(*inputs), definition((2, 3))(*exact), 1e-5)  # nothing of the tracer's is kept


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_flop_formula(backend: str, device: str) -> None:
    inputs = [x.detach().to(device).requires_grad_() for x in make_map_inputs(3, 4, 6, 5, (2, 3), torch.float32)]
    with FlopCounterMode(display=False) as counter:
        y = scan(backend, (2, 3))(*inputs)
    forward = 2 * 3 * 6 * (4 * 6) * (9 * 5 + 1)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_all_backends_are_here() -> None:
    # The last two need a GPU; for Triton's see test_selective_scan_triton.py.
    assert set(BACKENDS.by_name) == {"native", "chunked", "reference", "mamba_ssm", "triton"}


# Low-rank step sizes

LOW_RANK = {"batch": 2, "directions": 4, "width": 6, "d_state": 2, "rank": 3, "size": (2, 3)}


@pytest.mark.parametrize("backend", [NATIVE, "chunked"])
def test_low_rank_step_sizes(backend: str) -> None:
    dtype = torch.float32 if backend == "native" else torch.float64
    inputs = make_low_rank_inputs(**LOW_RANK, dtype=dtype)
    assert_rounds_to(low_rank_scan(backend, (2, 3)), low_rank_scan("reference", (2, 3)), inputs, 1e-5)


@pytest.mark.parametrize("backend", [NATIVE, "chunked"])
def test_the_operator_knows_them_on_every_machine(backend: str) -> None:
    """A network that was traced for Triton's kernels may come to where there are none."""
    *inputs, weight = make_low_rank_inputs(**LOW_RANK, dtype=torch.float32)
    operators = torch.ops.mobilemamba.selective_scan.default, torch.ops.mobilemamba.selective_scan_backward.default
    function = lambda *x: operators[0](*x[:7], 2, 3, backend, x[7])  # noqa: E731
    assert_rounds_to(function, low_rank_scan("reference", (2, 3)), [*inputs, weight], 1e-5)
    torch.library.opcheck(operators[0], (*inputs, 2, 3, backend, weight))
    detached = [x.detach() for x in (inputs[0], *inputs)]
    torch.library.opcheck(operators[1], (*detached, 2, 3, backend, weight.detach()))


def test_flops_of_low_rank_step_sizes() -> None:
    *inputs, weight = (x.detach().float() for x in make_low_rank_inputs(**LOW_RANK))
    counts = []
    for scan in (
        low_rank_scan("auto", (2, 3)),
        lambda *x: torch.ops.mobilemamba.selective_scan(*x[:7], 2, 3, "auto", x[7]),
    ):
        with FlopCounterMode(display=False) as counter:
            scan(*inputs, weight)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 2 * 4 * 6 * 6 * (3 + 9 * 2 + 1)


def test_a_weight_of_another_rank_is_refused() -> None:
    *inputs, weight = make_low_rank_inputs(**LOW_RANK, dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"dt_weight has shape \(4, 2, 6\)"):
        torch.ops.mobilemamba.selective_scan(*inputs, 2, 3, "auto", weight[:, :2])
