"""The numbers of the Triton kernels: by its interpreter if ``TRITON_INTERPRET=1``, otherwise as compiled for a GPU.

The interpreter must be on before Triton is imported, so that ``test_triton`` starts a process for it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mobilemamba.models.inference import lay_out, layers, packed
from mobilemamba.ops import jit, stem_conv
from mobilemamba.ops.backends import Backends
from mobilemamba.ops.depthwise import ACTIVATIONS
from mobilemamba.ops.depthwise import definition as depthwise_definition
from mobilemamba.ops.depthwise import triton as depthwise
from mobilemamba.ops.mix_channels import triton as mix
from mobilemamba.ops.scan_norm_gate import definition as norm_gate_definition
from mobilemamba.ops.scan_norm_gate import triton as norm_gate
from mobilemamba.ops.selective_scan import selective_scan, selective_scan_2d
from mobilemamba.ops.selective_scan import triton as selective_scan_triton
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.wavelet import triton as wavelet
from mobilemamba.ops.wavelet.definition import haar_filters, wavelet_conv
from mobilemamba.ops.wavelet.native import by_band
from tests.models.conftest import randomize
from tests.ops.launches import launches_by_ptx
from tests.ops.recurrences import gradients
from tests.ops.scans import (
    assert_near,
    assert_rounds_to,
    low_rank_scan,
    make_inputs,
    make_low_rank_inputs,
    make_map_inputs,
    poisoned_memory,
)
from tests.ops.test_inference import ARRANGEMENTS, make_parts, make_scan, mixed

# fp16 and bf16 round the results; bf16 is cut off where a GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


INTERPRETED = triton.knobs.runtime.interpret
if INTERPRETED:
    import tests.ops.interpreter  # noqa: F401
else:

    @pytest.fixture(autouse=True)
    def _as_compiled() -> Iterator[None]:
        with launches_by_ptx(90):
            yield


def in_precisions(*shapes: tuple[object, ...], others: Sequence[tuple[object, ...]] = ()) -> list[tuple[object, ...]]:
    """Some shapes in every dtype, and others in fp32 alone: what a dtype changes is the same in all shapes."""
    return [(*shape, dtype) for dtype in TOLERANCES for shape in shapes] + [(*x, torch.float32) for x in others]


def scan(backend: str, size: tuple[int, int]) -> Callable[..., Tensor]:
    return lambda *inputs: selective_scan_2d(*inputs, size=size, backend=backend)


def assert_agrees(inputs: list[Tensor], size: tuple[int, int], least: float = 1.0) -> None:
    with poisoned_memory():
        assert_rounds_to(scan("triton", size), scan("reference", size), inputs, TOLERANCES[inputs[0].dtype], least)


@pytest.mark.parametrize(
    ("batch", "size", "directions", "width", "d_state", "dtype"),
    in_precisions(
        (1, (1, 1), 1, 1, 1),
        (2, (1, 7), 2, 16, 1),
        (1, (5, 7), 2, 33, 1),  # three blocks of positions, the last of them with three, and two of channels
        others=[(1, (2, 3), 4, 40, 4), (1, (5, 7), 4, 31, 3), (1, (4, 4), 1, 17, 16)],
    ),
    ids=str,
)
def test_output_and_gradients(
    batch: int, size: tuple[int, int], directions: int, width: int, d_state: int, dtype: torch.dtype
) -> None:
    assert_agrees(make_map_inputs(batch, directions, width, d_state, size, dtype), size)


@pytest.mark.parametrize(
    ("batch", "size", "directions", "width", "d_state", "rank", "dtype"),
    in_precisions(
        (2, (1, 1), 1, 1, 1, 1),
        (2, (3, 6), 2, 40, 1, 5),
        others=[(1, (2, 3), 4, 17, 3, 17), (0, (2, 3), 2, 8, 1, 2)],
    ),
    ids=str,
)
def test_low_rank_step_sizes(
    batch: int, size: tuple[int, int], directions: int, width: int, d_state: int, rank: int, dtype: torch.dtype
) -> None:
    inputs = make_low_rank_inputs(batch, directions, width, d_state, rank, size, dtype)
    with poisoned_memory():
        assert_rounds_to(low_rank_scan("triton", size), low_rank_scan("reference", size), inputs, TOLERANCES[dtype])


def test_a_map_of_the_network_s() -> None:
    assert_agrees(make_map_inputs(1, 2, 33, 1, (3, 3), torch.float16), (3, 3))


@pytest.mark.parametrize("length", [7, 34])
def test_sequences(length: int) -> None:
    inputs = make_inputs(2, 3, 5, 2, length, torch.float32)
    functions = (lambda *x, backend=backend: selective_scan(*x, backend=backend) for backend in ("triton", "reference"))
    with poisoned_memory():
        assert_rounds_to(*functions, inputs, 1e-5)


def test_pictures_whose_elements_32_bits_cannot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are too large for a test; the way that is taken for them is not."""
    monkeypatch.setattr(selective_scan_triton, "_is_wide", lambda x: True)
    inputs, size = make_low_rank_inputs(1, 4, 17, 2, 3, (3, 6), torch.float32), (3, 6)
    assert_rounds_to(low_rank_scan("triton", size), low_rank_scan("reference", size), inputs, 1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="readers and writers would be noted for the whole file, 8 GB")
def test_directions_whose_distance_32_bits_cannot_count(tmp_path: Path) -> None:
    """Those of u follow each other at 2^30 elements, in a file with nothing in between."""
    shape, K, D = (1, 4, 3, 2), 4, 2
    u, dt, B, C = (torch.randn(shape, dtype=torch.float16) for _ in range(4))
    x = ScanInputs(u, dt, -torch.rand(K, D, 2), B, C, torch.randn(K, D), torch.randn(K, D))
    file = torch.from_file(str(tmp_path / "u"), shared=True, size=2**32, dtype=torch.float16)
    far = x._replace(u=file.as_strided(shape, (2**32, 2**30, 2, 1)).copy_(u))
    for function in (selective_scan_triton.forward, partial(selective_scan_triton.backward, torch.ones(shape))):
        torch.testing.assert_close(function(far, ()), function(x, ()), rtol=0, atol=0)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x.new_full(x.shape, torch.nan)], -1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x)


@pytest.mark.parametrize("arrange", [transposed, every_other, expanded], ids=lambda f: f.__name__)
def test_inputs_and_gradients_of_any_strides(arrange: Callable[[Tensor], Tensor]) -> None:
    size = (2, 3)
    inputs = [x.detach() for x in make_map_inputs(2, 2, 20, 2, size, torch.float32)]
    inputs = [-arrange(x).abs() if i == 2 else arrange(x) for i, x in enumerate(inputs)]
    assert_agrees(inputs, size)
    weights, inputs = arrange(torch.randn(2, 6, 20)), [x.requires_grad_() for x in inputs]
    theirs = gradients(scan("reference", size), inputs, weights)
    torch.testing.assert_close(gradients(scan("triton", size), inputs, weights), theirs, rtol=1e-4, atol=1e-4)


def test_inputs_of_several_precisions() -> None:
    inputs = make_map_inputs(1, 2, 20, 2, (2, 3), torch.float32)
    for i in (0, 3, 4):
        inputs[i] = inputs[i].detach().half().requires_grad_()
    assert_agrees(inputs, (2, 3))


@pytest.mark.parametrize("shift", [-100.0, -30.0, 30.0, 100.0])
def test_extreme_step_sizes(shift: float) -> None:
    inputs = make_map_inputs(1, 2, 20, 2, (2, 3), torch.float32)
    with torch.no_grad():
        inputs[1] += shift
    assert_agrees(inputs, (2, 3), least=1e-30)


@pytest.mark.parametrize("position", range(7))
def test_nan_reaches_the_output(position: int) -> None:
    inputs = [x.detach() for x in make_map_inputs(1, 1, 20, 1, (1, 3), torch.float32)]
    inputs[position].view(-1)[0] = torch.nan
    expected = scan("reference", (1, 3))(*inputs).isnan()
    assert expected.any()
    assert torch.equal(scan("triton", (1, 3))(*inputs).isnan(), expected)


@pytest.mark.parametrize(("batch", "size"), [(0, (3, 2)), (2, (0, 3)), (0, (0, 0))], ids=str)
def test_nothing_to_scan(batch: int, size: tuple[int, int]) -> None:
    inputs = make_map_inputs(batch, 4, 5, 3, size, torch.float32)
    with poisoned_memory():
        y = scan("triton", size)(*inputs)
        grads = gradients(scan("triton", size), inputs, torch.ones_like(y))
    assert y.shape == inputs[0].shape
    assert [g.shape for g in grads] == [x.shape for x in inputs]
    assert not any(g.any() for g in grads)  # NaN is true


def test_same_bits_in_every_run() -> None:
    size = (1, 3)
    inputs, ours = make_low_rank_inputs(2, 2, 40, 2, 3, size, torch.float16), low_rank_scan("triton", size)
    weights = torch.randn(inputs[0].shape).half()
    first, second = ([ours(*inputs), *gradients(ours, inputs, weights)] for _ in "12")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Scan, LayerNorm, gate


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("size", "directions", "width", "d_state", "rank"),
    [((1, 1), 1, 5, 1, 1), ((2, 3), 4, 40, 2, 5), ((3, 2), 2, 9, 20, 4)],
    ids=str,
)
def test_scan_norm_gate(
    size: tuple[int, int], directions: int, width: int, d_state: int, rank: int, dtype: torch.dtype
) -> None:
    inputs = make_scan(directions, width, d_state, rank, size, dtype)
    with poisoned_memory():
        y = norm_gate.compute(*inputs, 1e-5)
    assert y.dtype == dtype
    assert_near(y, norm_gate_definition(*(x.double() for x in inputs), 1e-5), TOLERANCES[dtype])


@ARRANGEMENTS
def test_scan_norm_gate_of_any_strides(arrange: Callable[[Tensor], Tensor]) -> None:
    inputs = make_scan(2, 20, 2, 3, (2, 3), torch.float32)
    inputs[:3] = [arrange(x) for x in inputs[:3]]
    exact = norm_gate_definition(*(x.double() for x in inputs), 1e-5)
    assert_near(norm_gate.compute(*inputs, 1e-5), exact, 1e-5)


def test_scan_norm_gate_of_nothing() -> None:
    inputs = make_scan(2, 20, 2, 3, (5, 6), torch.float32)
    assert norm_gate.compute(*(x[:0] for x in inputs[:3]), *inputs[3:], 1e-5).shape == (0, 5, 6, 20)
    assert norm_gate.compute(*(x[:, :0] for x in inputs[:3]), *inputs[3:], 1e-5).shape == (2, 0, 6, 20)


# The convolution in the wavelet domain


def assert_wavelet_agrees(x: Tensor, weight: Tensor, grad: Tensor) -> None:
    """Output and both gradients; that of the maps is the operator with mirrored kernels."""
    exact = [v.detach().double().requires_grad_() for v in (x, weight)]
    filters = haar_filters(x.shape[-1], exact[0])
    y = wavelet_conv(exact[0].permute(0, 3, 1, 2), exact[1], filters, filters).permute(0, 2, 3, 1)
    expected = [y, *torch.autograd.grad(y, exact, grad.double())]
    with poisoned_memory():
        ours = [wavelet.haar_conv(x, weight), wavelet.haar_conv(grad, weight.flip(2, 3))]
        ours.append(wavelet.weight_gradient(grad, x, weight))
    assert [v.dtype for v in ours] == [x.dtype, x.dtype, weight.dtype]
    assert [v.stride() for v in ours[:2]] == 2 * [torch.empty(x.shape).stride()]
    for what, a, b in zip(("output", "gradient of x", "gradient of the weight"), ours, expected, strict=True):
        assert_near(a, b, TOLERANCES[x.dtype] if what != "gradient of the weight" else 1e-5, what)


@pytest.mark.parametrize(
    ("batch", "size", "channels", "kernel", "dtype"),
    in_precisions((1, (1, 1), 1, 1), (2, (5, 6), 33, 3), (0, (4, 4), 3, 3), others=[(1, (5, 7), 5, 5)]),
    ids=str,
)
def test_wavelet_conv(batch: int, size: tuple[int, int], channels: int, kernel: int, dtype: torch.dtype) -> None:
    x, grad = (torch.randn(batch, *size, channels).to(dtype) for _ in range(2))
    assert_wavelet_agrees(x, torch.randn(4 * channels, 1, kernel, kernel), grad)


def test_the_largest_wavelet_conv() -> None:
    x, grad = (torch.randn(1, 7, 8, 3) for _ in range(2))
    assert_wavelet_agrees(x, torch.randn(12, 1, 7, 7), grad)


def test_wavelet_conv_of_more_positions_than_a_program_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavelet, "_TILES", 2)
    x, grad = torch.randn(2, 2, 9, 10, 2)
    assert_wavelet_agrees(x, torch.randn(8, 1, 1, 1), grad)


@ARRANGEMENTS
def test_wavelet_conv_of_any_strides(arrange: Callable[[Tensor], Tensor]) -> None:
    x, grad = (arrange(torch.randn(2, 5, 6, 20)) for _ in range(2))
    assert_wavelet_agrees(x, torch.randn(80, 1, 3, 3).to(memory_format=torch.channels_last), grad)


def test_wavelet_conv_adds_cuts_off_and_writes_beside_others() -> None:
    x, add, weight = torch.randn(2, 5, 6, 20), torch.randn(2, 5, 6, 20).half(), torch.randn(80, 1, 3, 3)
    y = torch.full((2, 5, 6, 30), 7.0)
    wavelet.convolve(x, by_band(weight), y[..., 4:24], add, relu=True)
    torch.testing.assert_close(y[..., 4:24], F.relu(wavelet.haar_conv(x, weight) + add))
    assert (y[..., :4] == 7).all()
    assert (y[..., 24:] == 7).all()


# The convolution of pictures


@pytest.mark.parametrize(
    ("size", "kernel", "channels", "width", "dtype"),
    in_precisions(((1, 1), 1, 1, 5), ((5, 7), 3, 3, 24), others=[((4, 3), 3, 7, 33), ((9, 10), 5, 2, 3)]),
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_stem_conv(
    size: tuple[int, int], kernel: int, channels: int, width: int, stride: int, dtype: torch.dtype
) -> None:
    x, bias = torch.randn(2, *size, channels).to(dtype), torch.randn(width).to(dtype)
    weight = torch.randn(kernel, kernel, channels, width).to(dtype)
    for relu in (False, True):
        with poisoned_memory():
            y = stem_conv._by_triton(x, weight, bias, stride, relu)
        assert y.dtype == dtype
        exact = stem_conv.definition(x.double(), weight.double(), bias.double(), stride, relu)
        assert_near(y, exact, TOLERANCES[dtype], least=(kernel**2 * channels) ** 0.5)


@pytest.mark.parametrize("arrange", [transposed, every_other, expanded], ids=lambda f: f.__name__)
def test_stem_conv_of_any_strides_by_long_programs(
    arrange: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many pictures are cut up, whose pixels here are three tiles, the last of them with two."""
    monkeypatch.setattr(stem_conv, "_ENOUGH", 0)
    x, weight, bias = arrange(torch.randn(2, 10, 13, 3)), arrange(torch.randn(3, 3, 3, 8)), torch.randn(8)
    assert_near(stem_conv._by_triton(x, weight, bias), stem_conv.definition(x.double(), weight, bias), 1e-5, least=5.0)


def test_stem_conv_lets_nan_through() -> None:
    x = torch.zeros(1, 4, 4, 3)
    x[0, 0, 0, 1] = torch.nan
    y = stem_conv._by_triton(x, torch.ones(3, 3, 3, 8), torch.zeros(8), 1, relu=True)
    assert y[0, :2, :2].isnan().all()
    assert y.isnan().sum() == 2 * 2 * 8


# The depthwise convolution, and MRFFI's parts


@pytest.mark.parametrize(
    ("size", "kernel", "channels", "dtype"),
    in_precisions(((1, 1), 1, 1), ((5, 7), 3, 33), others=[((3, 4), 7, 5)]),
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise(size: tuple[int, int], kernel: int, channels: int, stride: int, dtype: torch.dtype) -> None:
    x, bias = torch.randn(2, *size, channels).to(dtype), torch.randn(channels)
    weight = torch.randn(kernel, kernel, channels)
    for act in ACTIVATIONS:
        with poisoned_memory():
            y = depthwise.depthwise_conv(x, weight, bias, act, stride)
        assert y.dtype == dtype
        assert_near(y, depthwise_definition(x.double(), weight, bias, act, stride), TOLERANCES[dtype])


def test_depthwise_of_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large maps are cut up."""
    monkeypatch.setattr(depthwise, "_ENOUGH", 0)
    x, weight, bias = torch.randn(2, 5, 7, 9).half(), torch.randn(3, 3, 9).half(), torch.randn(9).half()
    y = depthwise.depthwise_conv(x, weight, bias, "swish", 2)
    assert_near(y, depthwise_definition(x.double(), weight, bias, "swish", 2), TOLERANCES[torch.float16])


@ARRANGEMENTS
def test_depthwise_of_any_strides(arrange: Callable[[Tensor], Tensor]) -> None:
    x, weight, bias = arrange(torch.randn(1, 3, 4, 20)), torch.randn(3, 3, 20), torch.randn(20)
    assert_near(depthwise.depthwise_conv(x, weight, bias), depthwise_definition(x.double(), weight, bias), 1e-5)


def test_depthwise_lets_nan_through() -> None:
    x = torch.zeros(1, 4, 4, 20)
    x[0, 0, 0] = torch.nan
    for act in ACTIVATIONS:
        y = depthwise.depthwise_conv(x, torch.ones(3, 3, 20), torch.zeros(20), act)
        assert y[0, :2, :2].isnan().all()
        assert y.isnan().sum() == 2 * 2 * 20


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("channels", "of_global", "of_local", "kernels", "wavelet"),
    [(44, 17, (9, 12), (3, 5), 3), (24, 16, (8,), (1,), 0), (5, 5, (), (), 1)],
    ids=str,
)
def test_mix_channels(
    channels: int, of_global: int, of_local: tuple[int, ...], kernels: tuple[int, ...], wavelet: int, dtype: torch.dtype
) -> None:
    x, branch = torch.randn(2, 3, 4, channels).to(dtype), torch.randn(2, 3, 4, of_global).to(dtype)
    parts = make_parts(of_global, of_local, kernels, wavelet)
    with poisoned_memory():
        y = mix.mix_channels(x, branch, *parts)
    assert y.dtype == dtype
    assert_near(y, mixed(x, branch, *parts), TOLERANCES[dtype])


def test_none_of_them_of_nothing() -> None:
    parts = make_parts(20, (8, 8), (3, 5), 3)
    for shape in ((0, 4, 5), (2, 0, 5)):
        assert mix.mix_channels(torch.randn(*shape, 40), torch.randn(*shape, 20), *parts).shape == (*shape, 40)
        assert depthwise.depthwise_conv(torch.randn(*shape, 8), *parts[1][:2]).shape == (*shape, 8)
        assert stem_conv._by_triton(torch.randn(*shape, 3), torch.randn(3, 3, 3, 8), torch.randn(8)).shape == (
            *shape,
            8,
        )


# A network whose layers are those of a GPU


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)], ids=str)
def test_a_network_laid_out_for_a_gpu(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of the CPU, so that the kernels stand in for the operators and PyTorch for cuBLAS and cuDNN."""
    for name, function in (("scan_norm_gate", norm_gate.compute), ("mix_channels", mix.mix_channels)):
        backends = Backends(name, function, jit.backend(function, unavailable=lambda *_: None))
        monkeypatch.setattr(layers, name, backends)
    monkeypatch.setattr(packed, "depthwise_conv", depthwise.depthwise_conv)
    monkeypatch.setattr(packed, "stem_conv", stem_conv._by_triton)
    for module in (packed, layers):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)
    model = timm.create_model("mobilemamba_s6", embed_dims=(16, 24, 32), depths=(1, 1, 1), num_classes=7)
    randomize(model)
    optimized, pictures = lay_out(model, torch.device("cuda"), dtype), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(pictures), optimized(pictures.to(dtype))
    assert sum(isinstance(layer, layers.InferenceMRFFI) for layer in optimized.modules()) == 3
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < tolerance * expected.norm()
