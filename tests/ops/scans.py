"""What the tests of the scans share: random inputs, a comparison by rounding, and fresh memory that is not zero."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mobilemamba.ops.native import library
from mobilemamba.ops.selective_scan import selective_scan_2d
from tests.ops.recurrences import gradients

NAMES = ("u", "dt", "A", "B", "C", "D", "dt_bias")

needs_native = pytest.mark.skipif(
    library.why_not() is not None, reason=f"the compiled kernels cannot be used: {library.why_not()}"
)
NATIVE = pytest.param("native", marks=needs_native)


def make_inputs(
    batch: int, directions: int, width: int, d_state: int, length: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random inputs of ``selective_scan``, a stable recurrence; each is a leaf that wants its gradient."""
    B, K, D, N, L = batch, directions, width, d_state, length
    shapes = ((B, K, D, L), (B, K, D, L), (K, D, N), (B, K, N, L), (B, K, N, L), (K, D), (K, D))
    return _leaves(shapes, dtype)


def make_map_inputs(
    batch: int,
    directions: int,
    width: int,
    d_state: int,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Random inputs of ``selective_scan_2d``."""
    B, K, D, N, L = batch, directions, width, d_state, size[0] * size[1]
    shapes = ((B, L, D), (B, K, L, D), (K, D, N), (B, K, L, N), (B, K, L, N), (K, D), (K, D))
    return _leaves(shapes, dtype)


def make_low_rank_inputs(
    batch: int,
    directions: int,
    width: int,
    d_state: int,
    rank: int,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Random inputs of ``selective_scan_2d``, and last the weight of its low-rank step sizes as a layer holds it."""
    inputs = make_map_inputs(batch, directions, width, d_state, size, dtype)
    inputs[1] = torch.randn(batch, directions, size[0] * size[1], rank).to(dtype).requires_grad_()
    weight = torch.randn(directions, width, rank, dtype=torch.promote_types(dtype, torch.float32))
    return [*inputs, weight.transpose(1, 2).requires_grad_()]


def low_rank_scan(backend: str, size: tuple[int, int]) -> Callable[..., Tensor]:
    """``selective_scan_2d`` of ``make_low_rank_inputs``."""
    return lambda *x: selective_scan_2d(*x[:7], size=size, backend=backend, dt_weight_KRD=x[7])


def _leaves(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs[2] = -torch.exp(0.5 * inputs[2])
    return [x.to(dtype).requires_grad_() for x in inputs]


def assert_near(ours: Tensor, exact: Tensor, tolerance: float, what: str = "output", least: float = 1.0) -> None:
    """Shape as exact has it, and no element off by more than ``tolerance`` times the largest.

    ``least`` is the size of the numbers that are summed: a sum that happens to be small is not more exact for that.
    """
    assert ours.shape == exact.shape, what
    if exact.numel():
        error = (ours.double() - exact.double()).abs().max().item()
        assert error <= tolerance * max(exact.abs().max().item(), least), f"{what}: off by {error}"  # a NaN fails too


def assert_rounds_to(
    scan: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float,
    least: float = 1.0,
) -> None:
    """Output and all gradients as the reference has them in fp64, and of the inputs' dtypes."""
    inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = scan(*inputs), reference(*exact)
    assert y.dtype == inputs[0].dtype
    assert_near(y, expected, tolerance, least=least)
    weights = torch.randn(y.shape, dtype=y.dtype)
    names = (*NAMES, "dt_weight")[: len(inputs)]
    pairs = zip(names, inputs, gradients(scan, inputs, weights), gradients(reference, exact, weights), strict=True)
    for name, x, ours, theirs in pairs:
        assert ours.dtype == x.dtype
        assert_near(ours, theirs, tolerance, f"gradient of {name}", least)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that PyTorch allocates without filling holds NaN: what a kernel forgets to write stands out."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextmanager
def threads(number: int) -> Iterator[None]:
    """That many threads for PyTorch, and so for the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
