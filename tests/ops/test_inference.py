"""The fused operators of inference against plain PyTorch in fp64."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobilemamba.ops import depthwise
from mobilemamba.ops import mix_channels as mix
from mobilemamba.ops import scan_norm_gate as fused_scan
from mobilemamba.ops.depthwise import ACTIVATIONS, Activation, depthwise_conv
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from tests.ops.scans import assert_near, needs_native, poisoned_memory, threads

pytestmark = needs_native

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SIZES = [(1, 1), (2, 3), (7, 7), (8, 5), (14, 15)]  # of maps


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2**-8


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def slice_of_wider(x: Tensor) -> Tensor:
    """The same numbers as some channels amid others, which are NaN."""
    return F.pad(x, (3, 5), value=torch.nan)[..., 3:-5]


def channels_apart(x: Tensor) -> Tensor:
    """The same numbers in (B, C, H, W) memory, whose channels the kernels cannot read as they lie."""
    return channels_last(channels_first(x).contiguous())


ARRANGEMENTS = pytest.mark.parametrize(
    "arrange", [torch.clone, slice_of_wider, channels_apart], ids=lambda f: f.__name__
)


# Scan, LayerNorm, gate


def make_scan(
    directions: int, width: int, d_state: int, rank: int, size: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    K, D, N, R = directions, width, d_state, rank
    maps = [torch.randn(2, *size, channels).to(dtype) for channels in (D, K * (R + 2 * N), D)]
    others = [torch.randn(shape) for shape in ((K, R, D), (K, D, N), (K, D), (K, D), (D,), (D,))]
    others[1] = -others[1].exp()
    return [*maps, *others]


@DTYPES
@pytest.mark.parametrize(
    ("size", "directions", "width", "d_state", "rank"),
    [
        ((1, 1), 1, 5, 1, 1),
        ((7, 7), 2, 48, 1, 2),
        ((5, 3), 4, 31, 3, 4),
        ((4, 9), 2, 130, 2, 17),
        ((15, 15), 4, 32, 1, 3),
    ],
    ids=str,
)
def test_scan_norm_gate(
    size: tuple[int, int], directions: int, width: int, d_state: int, rank: int, dtype: torch.dtype
) -> None:
    inputs = make_scan(directions, width, d_state, rank, size, dtype)
    with poisoned_memory():
        y = scan_norm_gate(*inputs, 1e-5)
    assert y.dtype == dtype
    # In bf16 the scan's sum is rounded before the norm, and the norm's result after the gate.
    assert_near(
        y, fused_scan.definition(*(x.double() for x in inputs), 1e-5), 5e-5 if dtype == torch.float32 else 2**-7
    )


@DTYPES
@ARRANGEMENTS
def test_scan_norm_gate_of_any_strides(arrange: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    inputs = make_scan(2, 20, 2, 3, (5, 6), dtype)
    inputs[:3] = [arrange(x) for x in inputs[:3]]
    exact = fused_scan.definition(*(x.double() for x in inputs), 1e-5)
    assert_near(scan_norm_gate(*inputs, 1e-5), exact, 5e-5 if dtype == torch.float32 else 2**-7)


def test_halves_of_one_projection_are_read_where_they_lie() -> None:
    inputs = make_scan(2, 20, 2, 3, (5, 6), torch.float32)
    inputs[0], inputs[2] = torch.randn(2, 5, 6, 40).chunk(2, dim=-1)
    assert_near(scan_norm_gate(*inputs, 1e-5), fused_scan.definition(*(x.double() for x in inputs), 1e-5), 5e-5)


def test_scan_norm_gate_of_nothing() -> None:
    inputs = make_scan(2, 20, 2, 3, (5, 6), torch.float32)
    inputs[:3] = [x[:0] for x in inputs[:3]]
    assert scan_norm_gate(*inputs, 1e-5).shape == (0, 5, 6, 20)
    inputs = make_scan(2, 20, 2, 3, (0, 6), torch.float32)
    assert scan_norm_gate(*inputs, 1e-5).shape == (2, 0, 6, 20)


# The three parts of MRFFI


def make_parts(
    of_global: int, of_local: tuple[int, ...], kernels: tuple[int, ...], wavelet: int
) -> tuple[Tensor | None, list[Tensor]]:
    wavelet_weight = torch.randn(4, wavelet, wavelet, of_global) if wavelet else None
    local = []
    for channels, kernel in zip(of_local, kernels, strict=True):
        local += [torch.randn(kernel, kernel, channels), *(torch.randn(channels) for _ in range(3))]
    return wavelet_weight, local


def mixed(x: Tensor, branch: Tensor, *parts: Any) -> Tensor:
    return mix.definition(x.double(), branch.double(), *parts)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("channels", "of_global", "of_local", "kernels", "wavelet"),
    [
        (37, 17, (9, 5), (3, 5), 3),  # and 6 as they are
        (64, 32, (16,), (7,), 5),
        (24, 16, (8,), (1,), 0),  # no wavelet, and no rest
        (5, 1, (), (), 1),
        (20, 20, (), (), 3),  # global alone
    ],
    ids=str,
)
def test_mix_channels(
    size: tuple[int, int],
    channels: int,
    of_global: int,
    of_local: tuple[int, ...],
    kernels: tuple[int, ...],
    wavelet: int,
    dtype: torch.dtype,
) -> None:
    x, branch = torch.randn(2, *size, channels).to(dtype), torch.randn(2, *size, of_global).to(dtype)
    parts = make_parts(of_global, of_local, kernels, wavelet)
    with poisoned_memory():
        y = mix_channels(x, branch, *parts)
    assert y.dtype == dtype
    assert_near(y, mixed(x, branch, *parts), tolerance(dtype))


@settings(max_examples=50)
@given(
    *(st.integers(low, high) for low, high in ((0, 2), (1, 9), (1, 9), (1, 50), (1, 40), (0, 20))),
    st.sampled_from([1, 3, 5, 7, 9]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_mix_channels_of_any_shape(
    batch: int, height: int, width: int, of_global: int, of_local: int, rest: int, kernel: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)  # so that an example by itself can be repeated
    x = torch.randn(batch, height, width, of_global + of_local + rest).to(dtype)
    branch = torch.randn(batch, height, width, of_global).to(dtype)
    parts = make_parts(of_global, (of_local,), (kernel,), kernel)
    assert_near(mix_channels(x, branch, *parts), mixed(x, branch, *parts), tolerance(dtype))


@DTYPES
@ARRANGEMENTS
def test_mix_channels_of_any_strides(arrange: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, branch = (arrange(torch.randn(2, 5, 6, channels).to(dtype)) for channels in (40, 20))
    parts = make_parts(20, (8, 8), (3, 5), 3)
    assert_near(mix_channels(x, branch, *parts), mixed(x, branch, *parts), tolerance(dtype))


def test_mix_channels_lets_nan_through() -> None:
    x, branch = torch.randn(1, 4, 4, 40), torch.randn(1, 4, 4, 20)
    x[0, 0, 0] = torch.nan
    y = mix_channels(x, branch, *make_parts(20, (8,), (1,), 1))
    assert y[0, 0, 0].isnan().all()
    assert y[0, 2:].isfinite().all()


def test_mix_channels_of_nothing() -> None:
    parts = make_parts(20, (8, 8), (3, 5), 3)
    for shape in ((0, 4, 5), (2, 0, 5)):
        assert mix_channels(torch.randn(*shape, 40), torch.randn(*shape, 20), *parts).shape == (*shape, 40)


# The depthwise convolution


def convolved(x: Tensor, weight: Tensor, bias: Tensor, act: Activation, stride: int = 1) -> Tensor:
    return depthwise.definition(x.double(), weight, bias, act, stride)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("channels", [5, 16, 41])
def test_depthwise(size: tuple[int, int], kernel: int, channels: int, dtype: torch.dtype) -> None:
    x, bias = torch.randn(2, *size, channels).to(dtype), torch.randn(channels)
    weight = torch.randn(kernel, kernel, channels)
    for act, stride in product(ACTIVATIONS, (1, 2, 3)):
        with poisoned_memory():
            y = depthwise_conv(x, weight, bias, act, stride)
        assert y.dtype == dtype
        assert_near(y, convolved(x, weight, bias, act, stride), tolerance(dtype))


@DTYPES
@ARRANGEMENTS
def test_depthwise_of_any_strides(arrange: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x, weight, bias = arrange(torch.randn(2, 5, 6, 40).to(dtype)), torch.randn(3, 3, 40), torch.randn(40)
    assert_near(depthwise_conv(x, weight, bias), convolved(x, weight, bias, "none"), tolerance(dtype))


def test_depthwise_lets_nan_through() -> None:
    x = torch.zeros(1, 4, 4, 20)
    x[0, 0, 0] = torch.nan
    for act in ACTIVATIONS:
        y = depthwise_conv(x, torch.ones(3, 3, 20), torch.zeros(20), act)
        assert y[0, :2, :2].isnan().all()
        assert y[0, 2:].isfinite().all()
        assert y[0, :, 2:].isfinite().all()


def test_depthwise_of_nothing() -> None:
    for shape in ((0, 4, 5, 20), (2, 0, 5, 20)):
        assert depthwise_conv(torch.randn(shape), torch.randn(3, 3, 20), torch.randn(20)).shape == shape


# All of them


def calls(dtype: torch.dtype) -> list[tuple[Callable[..., Tensor], tuple]]:
    """Each operator of a graph, with arguments whose work several threads share."""
    x = torch.randn(3, 9, 7, 70).to(dtype)
    return [
        (scan_norm_gate, (*make_scan(4, 70, 2, 3, (9, 7), dtype), 1e-5)),
        (mix_channels, (x, torch.randn(3, 9, 7, 33).to(dtype), *make_parts(33, (20, 9), (3, 5), 3))),
    ]


def depthwise_call(dtype: torch.dtype) -> tuple[Callable[..., Tensor], tuple]:
    """It is no operator of a graph."""
    return depthwise_conv, (torch.randn(3, 9, 7, 70).to(dtype), torch.randn(3, 3, 70), torch.randn(70))


@DTYPES
def test_same_bits_in_every_run_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    for operator, arguments in [*calls(dtype), depthwise_call(dtype)]:
        results = []
        for number in (1, 1, 2, 3, 3):
            with threads(number):
                results.append(operator(*arguments))
        assert all(torch.equal(results[0], other) for other in results[1:])


@DTYPES
def test_arguments_are_left_as_they_were(dtype: torch.dtype) -> None:
    for operator, arguments in [*calls(dtype), depthwise_call(dtype)]:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        before = [x.clone() for x in tensors]
        operator(*arguments)
        assert all(torch.equal(x, old) for x, old in zip(tensors, before, strict=True))


@DTYPES
def test_opcheck(dtype: torch.dtype) -> None:
    for operator, arguments in calls(dtype):
        torch.library.opcheck(operator.by_name["native"].forward, arguments)


def test_each_is_one_node_of_a_compiled_graph() -> None:
    torch.compiler.reset()
    for operator, arguments in calls(torch.float32):
        compiled = torch.compile(lambda *x, operator=operator: operator(*x), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), operator(*arguments))
    torch.compiler.reset()
