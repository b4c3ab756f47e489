"""Derivatives of every kind: each operator has them right, or says that it has not."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mobilemamba.errors import ConfigError
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.ops.batch_norm import native as batch_norm
from mobilemamba.ops.depthwise import depthwise_conv
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.mlstm import mlstm
from mobilemamba.ops.rwkv6 import rwkv6
from mobilemamba.ops.selective_scan import selective_scan, selective_scan_2d
from mobilemamba.ops.ttt_linear import ttt_linear
from tests.ops.scans import make_inputs, make_map_inputs, needs_native
from tests.ops.test_haar_conv import haar_conv

pytestmark = pytest.mark.kernels

Function = Callable[[Tensor], Tensor]


def of_first(operator: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Function, Tensor]:
    first, *others = (torch.randn(shape) for shape in shapes)
    return lambda x: operator(x, *others), first


def scan(backend: str) -> tuple[Function, Tensor]:
    first, *others = (x.detach() for x in make_inputs(1, 2, 3, 2, 6, torch.float32))
    return lambda u: selective_scan(u, *others, backend=backend), first


def map_scan(backend: str) -> tuple[Function, Tensor]:
    first, *others = (x.detach() for x in make_map_inputs(1, 2, 3, 2, (2, 3), torch.float32))
    return lambda u: selective_scan_2d(u, *others, size=(2, 3), backend=backend), first


def norm() -> tuple[Function, Tensor]:
    weights, zeros, ones = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    running = (zeros.clone(), ones.clone())
    norm = partial(batch_norm.forward, running=running, affine=(ones, zeros), momentum=0.1, eps=1e-5, relu=False)
    return lambda x: norm(x) * weights, torch.randn(2, 3, 4, 4)


def mix() -> tuple[Function, Tensor]:
    mixed, wavelet, local = torch.randn(1, 4, 4, 2), torch.randn(4, 3, 3, 2), [torch.randn(3, 3, 1), *torch.randn(3, 1)]
    return lambda x: mix_channels(x, mixed, wavelet, local), torch.randn(1, 4, 4, 5)


SEQUENCES = [(1, 2, 1, 5, 4)] * 3
HAVE_ALL: dict[str, Callable[[], tuple[Function, Tensor]]] = {
    "reference": lambda: scan("reference"),
    "2d reference": lambda: map_scan("reference"),
    "wavelet": lambda: (WaveletConv(3, 3), torch.randn(1, 3, 4, 4)),
    "mlstm": lambda: of_first(mlstm, *SEQUENCES, (1, 2, 1, 5), (1, 2, 1, 5)),
    "rwkv6": lambda: of_first(rwkv6, *SEQUENCES, (1, 2, 1, 5, 4), (2, 1, 4)),
    "ttt": lambda: of_first(ttt_linear, *SEQUENCES, (1, 2, 1, 5), (3,), (1, 4, 4), (1, 4), (1, 4), (1, 4)),
}
HAVE_NOT: dict[str, Callable[[], tuple[Function, Tensor]]] = {
    "native": lambda: scan("native"),
    "chunked": lambda: scan("chunked"),
    "2d native": lambda: map_scan("native"),
    "2d chunked": lambda: map_scan("chunked"),
    "batch norm": norm,
    "haar": lambda: of_first(haar_conv, (1, 4, 4, 3), (12, 1, 3, 3)),
    "depthwise": lambda: of_first(depthwise_conv, (1, 4, 4, 3), (3, 3, 3), (3,)),
    "mix channels": mix,
}


def gradient(function: Function, x: Tensor, create_graph: bool = False) -> Tensor:
    return torch.autograd.grad(function(x).square().sum(), x, create_graph=create_graph)[0]


def forward_mode(function: Function, x: Tensor, v: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v))).tangent


def central(function: Function, x: Tensor, v: Tensor) -> Tensor:
    return (function(x + 1e-3 * v) - function(x - 1e-3 * v)) / 2e-3


@needs_native
@pytest.mark.parametrize("name", HAVE_ALL)
def test_what_plain_pytorch_computes_has_all(name: str) -> None:
    function, x = HAVE_ALL[name]()
    v, leaf = torch.randn_like(x), x.clone().requires_grad_()
    tolerance = {"rtol": 3e-2, "atol": 3e-3}
    with torch.no_grad():
        tangent = central(function, x, v)
    torch.testing.assert_close(torch.func.jvp(function, (x,), (v,))[1], tangent, **tolerance)
    torch.testing.assert_close(forward_mode(function, x, v), tangent, **tolerance)
    expected, of_one = gradient(function, leaf), torch.func.grad(lambda z: function(z).square().sum())
    torch.testing.assert_close(of_one(x), expected)
    torch.testing.assert_close(torch.func.vmap(of_one)(x[None])[0], expected)
    (second,) = torch.autograd.grad((gradient(function, leaf, create_graph=True) * v).sum(), leaf)
    numeric = central(lambda z: gradient(function, z.clone().requires_grad_()), x, v)
    assert (second - numeric).norm() <= 0.03 * numeric.norm()


@needs_native
@pytest.mark.parametrize("name", HAVE_NOT)
def test_what_a_kernel_has_not_is_an_error_and_no_zero(name: str) -> None:
    function, x = HAVE_NOT[name]()
    v = torch.randn_like(x)
    for derive in (lambda: torch.func.jvp(function, (x,), (v,)), lambda: forward_mode(function, x, v)):
        with pytest.raises(ConfigError, match="has no derivatives in forward mode"):
            derive()
    with pytest.raises(ConfigError, match=r"no derivatives|no gradients"):
        torch.func.grad(lambda z: function(z).square().sum())(x)
    if name != "haar":  # which has a second derivative
        leaf = x.clone().requires_grad_()
        with pytest.raises(ConfigError, match=r"has no (second derivatives|gradients)"):
            gradient(lambda z: gradient(function, z, create_graph=True), leaf)


@needs_native
def test_second_derivatives_of_the_haar_convolution() -> None:
    x, weight = torch.randn(1, 3, 4, 2, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(haar_conv, (x, weight), eps=1e-2, atol=2e-2, rtol=2e-2, fast_mode=True)


@needs_native
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["native", "2d native", "haar", "depthwise", "mix channels", "mlstm", "rwkv6", "ttt"])
def test_vmap_calls_one_after_the_other(name: str) -> None:
    function, x = (HAVE_ALL | HAVE_NOT)[name]()
    with torch.no_grad():
        both = torch.func.vmap(function)(torch.stack([x, 2 * x]))
        torch.testing.assert_close(both, torch.stack([function(x), function(2 * x)]))


@needs_native
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["native", "2d chunked", "haar"])
def test_vmap_over_gradients(name: str) -> None:
    function, x = (HAVE_ALL | HAVE_NOT)[name]()
    y = function(x.requires_grad_())

    def gradient_of(weights: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, weights, retain_graph=True)[0]

    several = torch.randn(2, *y.shape)
    torch.testing.assert_close(torch.func.vmap(gradient_of)(several), torch.stack([*map(gradient_of, several)]))


def test_vmap_over_the_weights_of_several_layers() -> None:
    layers, x = [WaveletConv(3, 3) for _ in range(2)], torch.randn(1, 3, 4, 4)
    weights, _ = torch.func.stack_module_state(layers)
    y = torch.func.vmap(lambda own: torch.func.functional_call(layers[0], own, x))(weights)
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]))
