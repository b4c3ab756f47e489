"""Convolutions and linear layers whose weights are laid out once compute the same."""

import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.models.inference import packed as inference
from mobilemamba.models.inference.packed import PackedConv, PackedLinear
from tests.models.inference.alike import NEEDS_KERNELS

ACTIVATIONS = [("none", nn.Identity()), ("relu", nn.ReLU()), ("swish", nn.SiLU()), ("sigmoid", nn.Sigmoid())]

pytestmark = NEEDS_KERNELS


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (3, 1, 8), (5, 2, 8), (1, 2, 1)])
@pytest.mark.parametrize(("act", "function"), ACTIVATIONS)
def test_packed_convolution(kernel: int, stride: int, groups: int, act: Any, function: nn.Module) -> None:
    conv = nn.Conv2d(8, 16 if groups == 1 else 8, kernel, stride, kernel // 2, groups=groups)
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        packed = PackedConv(conv.weight, conv.bias, stride, groups, act)
        torch.testing.assert_close(packed(x), function(conv(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "kernel"), [(16, 3), (8, 2)], ids=["two channels a group", "even kernel"])
def test_groups_that_our_depthwise_kernel_does_not_know(channels: int, kernel: int) -> None:
    conv, x = nn.Conv2d(channels, 8, kernel, padding=kernel // 2, groups=8), torch.randn(2, channels, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(PackedConv.of(conv)(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [9, 99])
def test_small_and_large_depthwise_convolutions(bias: bool, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is ours, the other oneDNN's."""
    called = []
    ours = inference.depthwise_conv
    monkeypatch.setattr(inference, "depthwise_conv", lambda *args: called.append(args) or ours(*args))
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias)
    x = torch.randn(2, 8, side, side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(PackedConv.of(conv)(x), conv(x), rtol=1e-5, atol=1e-5)
    assert bool(called) == (side == 9)


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "act", "ours"),
    [
        *((3, 3, 1, "relu", True), (3, 3, 1, "none", True), (2, 5, 1, "relu", True), (7, 3, 1, "relu", True)),
        *((8, 1, 1, "relu", False), (3, 3, 1, "swish", False), (7, 5, 1, "relu", False)),
        *((6, 3, 2, "relu", False), (3, 2, 1, "relu", False)),
    ],
)
def test_which_convolutions_on_a_gpu_are_of_pictures(
    channels: int, kernel: int, groups: int, act: Any, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    stem_conv = inference.stem_conv
    monkeypatch.setattr(inference, "stem_conv", lambda *args: called.append(args) or stem_conv(*args))
    monkeypatch.setattr(inference, "on_gpu", lambda _: True)
    conv = nn.Conv2d(channels, 8, kernel, 2, kernel // 2, groups=groups)
    x = torch.randn(2, channels, 7, 8)
    with torch.no_grad():
        expected = dict(ACTIVATIONS)[act](conv(x))
        torch.testing.assert_close(PackedConv(conv.weight, conv.bias, 2, groups, act)(x), expected)
    assert bool(called) == ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("act", "function"), ACTIVATIONS)
def test_packed_linear(bias: bool, act: Any, function: nn.Module) -> None:
    conv, x = nn.Conv2d(8, 16, 1, bias=bias), torch.randn(2, 7, 9, 8)
    with torch.no_grad():
        expected = function(conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        torch.testing.assert_close(PackedLinear.of(conv, act)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_packed_for_each_size_anew(kernel: int) -> None:
    conv = nn.Conv2d(8, 16, kernel, padding=kernel // 2)
    packed = PackedConv.of(conv)
    with torch.no_grad():
        for size in [(7, 9), (48, 48), (7, 9), (1, 1)]:
            x = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(packed(x), conv(x), rtol=1e-5, atol=1e-5)


def test_threads_with_maps_of_many_sizes() -> None:
    """Each drops packed weights that another has just used, and none of them fails."""
    packed, x = PackedLinear(torch.randn(4, 4)), torch.randn(1, 4)

    def lay_out(seed: int) -> None:
        sizes = Random(seed)
        for _ in range(10_000):
            packed.laid_out(x, sizes.randrange(5), lambda weight: weight)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lay_out, range(8)))
    finally:
        sys.setswitchinterval(before)


def test_packed_addition() -> None:
    conv, x, other = nn.Conv2d(8, 16, 1), torch.randn(2, 5, 5, 8), torch.randn(2, 5, 5, 16)
    with torch.no_grad():
        expected = nn.functional.linear(x, conv.weight.flatten(1), conv.bias) + other
        torch.testing.assert_close(PackedLinear.of(conv)(x, add=other), expected, rtol=1e-5, atol=1e-5)
