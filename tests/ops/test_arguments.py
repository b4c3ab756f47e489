"""Operators called as traced networks call them, without the wrappers: with arguments that do not fit together."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import mobilemamba.ops.kernels  # noqa: F401  registers all operators
from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.models import optimize_for_inference
from mobilemamba.ops.mlstm import mlstm
from mobilemamba.ops.rwkv6 import rwkv6
from mobilemamba.ops.ttt_linear import ttt_linear
from tests.ops.scans import needs_native

pytestmark = pytest.mark.kernels

OPERATORS = torch.ops.mobilemamba


def valid_arguments(dims: random.Random) -> dict[str, list[Any]]:
    """Of each operator by a compiled kernel, of random sizes."""
    B, H, W, D, N, R = (dims.randint(low, high) for low, high in ((1, 2), (1, 5), (1, 5), (1, 40), (1, 3), (1, 3)))
    K, k = dims.choice([1, 2, 4]), dims.choice([1, 3, 5])
    L, G = H * W, dims.randint(1, D)
    r = torch.randn
    scan_2d = [r(B, L, D), r(B, K, L, D), -r(K, D, N).exp(), r(B, K, L, N), r(B, K, L, N), r(K, D), r(K, D)]
    scan = [r(B, K, L, D), *scan_2d[1:]]
    fused = [r(B, H, W, D), r(B, H, W, K * (R + 2 * N)), r(B, H, W, D), r(K, R, D), -r(K, D, N).exp()]
    maps, of_channels = r(B + 1, D, H, W), [r(D), r(D)]
    return {
        "selective_scan": [*dims.choice([[*scan_2d, H, W], [*scan, 0, 0]]), "native"],
        "selective_scan_backward": [
            *dims.choice([[r(B, L, D), *scan_2d, H, W], [r(B, K, L, D), *scan, 0, 0]]),
            "native",
        ],
        "haar_conv": [r(B, H, W, D), r(4 * D, 1, k, k)],
        "haar_conv_weight": [r(B, H, W, D), r(B, H, W, D), r(4 * D, 1, k, k)],
        "scan_norm_gate": [*fused, r(K, D), r(K, D), r(D), r(D), 1e-5],
        "mix_channels": [r(B, H, W, D), r(B, H, W, G), r(4, k, k, G), [r(k, k, D - G), *(r(D - G) for _ in range(3))]],
        "depthwise_conv": [r(B, H, W, D), r(k, k, D), r(D), "swish", 2],
        "stem_conv": [r(B, H, W, N), r(3, 3, N, D), r(D), 2, True],
        "batch_norm": [maps, *of_channels, 1e-5, True],
        "batch_norm_backward": [maps.clone(), maps, *of_channels, r(D), r(D).abs(), False],
    }


def resized(x: Tensor, dims: random.Random) -> Tensor:
    shape = list(x.shape)
    shape[dims.randrange(len(shape))] = dims.choice([0, 1, 2, 3, 4, 7, 17, 64])
    return torch.randn(shape)


#: Ways to spoil a tensor, or only to lay it out in an unusual way.
CHANGES: list[Callable[[Tensor, random.Random], Tensor]] = [
    resized,
    resized,
    resized,
    lambda x, _: x[None],
    lambda x, _: x.sum(0),
    lambda x, dims: x.movedim(0, dims.randrange(x.ndim)),
    lambda x, dims: x.to(dims.choice([torch.int64, torch.complex64, torch.bool, torch.int8])),
    lambda x, dims: x.to(dims.choice([torch.float16, torch.bfloat16, torch.float64])),
    lambda x, _: x.flatten()[:1].expand(x.shape),
    lambda x, _: torch.stack([x, x], -1)[..., 0],
    lambda x, _: x.new_empty(0),
    lambda x, _: x.to("meta"),
    lambda x, _: torch.tensor(1.0),
]


def spoiled(arguments: list[Any], dims: random.Random) -> list[Any]:
    arguments, at = list(arguments), dims.randrange(len(arguments))
    chosen = arguments[at]
    if isinstance(chosen, Tensor) and chosen.ndim:
        arguments[at] = dims.choice(CHANGES)(chosen, dims)
    elif isinstance(chosen, list):
        arguments[at] = [*spoiled(chosen, dims)][: dims.randint(0, len(chosen))]
    elif isinstance(chosen, int) and not isinstance(chosen, bool):
        arguments[at] = dims.choice([-1, 0, 1, 100, 2**40])
    return arguments


def plainly(argument: Any) -> Any:
    """A tensor's numbers in the ordinary layout."""
    if isinstance(argument, list):
        return [plainly(x) for x in argument]
    return argument.clone(memory_format=torch.contiguous_format) if isinstance(argument, Tensor) else argument


def outcome(operator: Any, arguments: list[Any]) -> list[Tensor] | Exception:
    try:
        results = operator(*arguments)
    except (ConfigError, BackendUnavailableError, RuntimeError) as error:
        return error
    return [results] if isinstance(results, Tensor) else list(results)


@needs_native
@pytest.mark.parametrize("name", valid_arguments(random.Random(0)))
def test_native_operators_refuse_or_compute(name: str) -> None:
    """Whatever is given, nothing is read or written elsewhere; the sanitizer's run of this looks closely."""
    dims, operator, refused = random.Random(name), getattr(OPERATORS, name).default, 0
    with torch.no_grad():
        for _ in range(60):
            arguments = valid_arguments(dims)[name]
            assert not isinstance(outcome(operator, arguments), Exception)
            for _ in range(dims.randint(1, 2)):
                arguments = spoiled(arguments, dims)
            found = outcome(operator, arguments)
            if isinstance(found, Exception):
                refused += 1
                continue
            same = outcome(operator, [plainly(x) for x in arguments])
            assert not isinstance(same, Exception)
            assert [x.shape for x in found] == [x.shape for x in same]
            if all(x.device.type == "cpu" for x in found):
                torch.testing.assert_close(found, same, equal_nan=True)
    assert 10 < refused < 60


@needs_native
@pytest.mark.parametrize("name", valid_arguments(random.Random(0)))
def test_on_shapes_alone_the_same_is_refused(name: str) -> None:
    arguments = valid_arguments(random.Random(1))[name]
    shapes = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments]
    shapes = [[x.to("meta") for x in part] if isinstance(part, list) else part for part in shapes]
    operator = getattr(OPERATORS, name).default
    result, real = operator(*shapes), operator(*arguments)
    results, reals = ([x] if isinstance(x, Tensor) else x for x in (result, real))
    assert [(x.shape, x.dtype, x.stride()) for x in results] == [(x.shape, x.dtype, x.stride()) for x in reals]
    shapes[0] = shapes[0][..., :0]
    with pytest.raises(ConfigError, match=r"has shape \(|x has 0"):
        operator(*shapes)


@needs_native
@pytest.mark.parametrize(
    ("name", "at", "spoil", "message"),
    [
        ("selective_scan", 7, lambda _: 100, r"u has shape \(.*it must be \("),
        (
            "selective_scan",
            9,
            lambda _: "reference",
            "operator selective_scan does not know 'reference'; call the func",
        ),
        ("scan_norm_gate", 3, lambda dt_weight: dt_weight[:, :0], "dt_weight has rank 0; expected 1"),
        ("haar_conv", 0, lambda x: x.int(), "x is of torch.int32; expected real numbers"),
        ("haar_conv", 1, lambda w: w.new_ones(*w.shape[:2], 2, 2), "kernel size 2; expected an odd one"),
        ("mix_channels", 0, lambda x: x[..., 1:], r"the parts have (\d+) channels; x has (?!\1)"),
        ("depthwise_conv", 3, lambda _: "gelu", "activation 'gelu'; expected one of none, relu, swish, sigmoid"),
        ("depthwise_conv", 4, lambda _: 0, "stride=0; expected 1 to 2147483647"),
        ("depthwise_conv", 4, lambda _: 2**31, "stride=2147483648; expected 1 to 2147483647"),
        ("stem_conv", 1, lambda w: w[:2, :2], "kernel size 2; expected an odd one"),
        ("stem_conv", 3, lambda _: 0, "stride=0; expected 1 to 2147483647"),
        ("batch_norm", 0, lambda x: x[:1, :, :1, :1], "a variance needs two pixels"),
        ("batch_norm", 1, lambda weight: weight.long(), "weight is of torch.int64; expected real numbers"),
    ],
)
def test_the_message_names_the_mistake(name: str, at: int, spoil: Callable[[Any], Any], message: str) -> None:
    arguments = valid_arguments(random.Random(2))[name]
    arguments[at] = spoil(arguments[at])
    with pytest.raises(ConfigError, match=message):
        getattr(OPERATORS, name).default(*arguments)


@pytest.mark.parametrize(("operator", "shapes"), [
    (mlstm, [(1, 2, 1, 5, 4)] * 3 + [(1, 2, 1, 5)] * 2),
    (rwkv6, [(1, 2, 1, 5, 4)] * 4 + [(2, 1, 4)]),
    (ttt_linear, [(1, 2, 1, 5, 4)] * 3 + [(1, 2, 1, 5), (3,), (1, 4, 4), (1, 4), (1, 4), (1, 4)]),
], ids=["mlstm", "rwkv6", "ttt_linear"])  # fmt: skip
def test_plain_operators_check_too(operator: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    assert operator(*tensors).shape == shapes[0]
    assert operator(*(x[..., :0, :] if x.ndim == 5 else x[..., :0] if x.ndim == 4 else x for x in tensors)).numel() == 0
    for at, x in enumerate(tensors):
        if x.ndim > 1:
            with pytest.raises(ConfigError, match=rf"{operator.__name__}: \w+ has shape"):
                operator(*tensors[:at], torch.randn(*x.shape[:-1], 9), *tensors[at + 1 :])


# Whole networks, traced at one size and called at another


def traced(network: torch.nn.Module, x: Tensor, how: str) -> Callable[[Tensor], Tensor]:
    if how == "jit":
        return torch.jit.trace(network, x, check_trace=False)
    return make_fx(network)(x)


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["jit", "make_fx"])
@pytest.mark.parametrize("optimized", [False, True], ids=["as it is", "optimized"])
def test_a_traced_network_is_right_or_refuses_another_size(how: str, optimized: bool) -> None:
    network = timm.create_model("mobilemamba_t2", num_classes=3, embed_dims=(32, 48, 64), depths=(1, 1, 1))
    network = network.eval().requires_grad_(False)
    network = optimize_for_inference(network) if optimized else network
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        graph = traced(network, x, how)
        torch.testing.assert_close(graph(x), network(x), rtol=1e-3, atol=1e-4)
        for size in ((32, 32), (96, 64), (64, 160)):
            other = torch.randn(1, 3, *size)
            try:
                found = graph(other)
            except (ConfigError, RuntimeError):
                continue
            torch.testing.assert_close(found, network(other), rtol=1e-3, atol=1e-4)
