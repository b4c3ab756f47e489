"""Winograd's convolution against PyTorch's in double precision."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobilemamba.dense import create_detector
from mobilemamba.layers.conv_norm import ConvReLU
from mobilemamba.models import ArchOverrides, optimize_for_inference
from mobilemamba.models.inference.packed import PackedConv
from mobilemamba.models.inference.winograd import WinogradConv


def made(kind: type = nn.Conv2d, outs: int = 130) -> tuple[nn.Conv2d, WinogradConv]:
    conv = kind(128, outs, 3, padding=1).requires_grad_(requires_grad=False)
    packed = WinogradConv.of(conv)
    assert isinstance(packed, WinogradConv)
    return conv, packed


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (13, 31), (40, 90), (2, 390)])
def test_it_is_the_convolution(size: tuple[int, int]) -> None:
    conv, packed = made()
    x = torch.randn(2, 128, *size)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    for form in (torch.contiguous_format, torch.channels_last):
        y = packed(x.to(memory_format=form))
        assert y.shape == expected.shape
        assert (y - expected).norm() < 5e-6 * expected.norm()


def test_small_maps_and_what_is_traced_go_the_usual_way() -> None:
    conv, packed = made(ConvReLU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", None)  # which only Winograd's calls
        for x in (torch.randn(1, 128, 15, 17), torch.randn(2, 128, 3, 4)):
            torch.testing.assert_close(packed(x), conv(x).relu(), rtol=1e-4, atol=1e-5)
        half = PackedConv.of(conv).bfloat16(), copy.deepcopy(packed).bfloat16()
        x = torch.randn(1, 128, 20, 20, dtype=torch.bfloat16)
        assert torch.equal(*(each(x) for each in half))
        exported = torch.export.export(packed, (torch.randn(1, 128, 20, 20),)).module()
    x = torch.randn(1, 128, 20, 20)
    assert (packed(x) >= 0).all()
    torch.testing.assert_close(packed(x), exported(x), rtol=1e-3, atol=1e-4)


def test_other_weights_are_laid_out_anew() -> None:
    conv, packed = made()
    x, small, weight = torch.randn(1, 128, 20, 20), torch.randn(1, 128, 5, 5), conv.weight.clone()
    packed(x)
    packed(small)  # both forms of the weight are kept
    again = pickle.loads(pickle.dumps(packed))
    for each in (packed, again, copy.deepcopy(packed)):
        each.weight *= 2
        for given in (x, small):
            expected = F.conv2d(given, 2 * weight, conv.bias, padding=1)
            assert (each(given) - expected).norm() < 1e-5 * expected.norm()


def test_wide_heads_have_it() -> None:
    arch = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))
    detector = create_detector("retinanet", "mobilemamba_s6", 7, arch=arch, head_dim=128).eval()
    fastest = optimize_for_inference(detector)
    assert sum(isinstance(module, WinogradConv) for module in fastest.modules()) > 10
    assert not any(isinstance(module, WinogradConv) for module in fastest.backbone.modules())
    pictures = torch.randn(1, 3, 192, 160)
    with torch.no_grad():
        for found, expected in zip(fastest(pictures), detector(pictures), strict=True):
            assert (found - expected).norm() < 1e-5 * expected.norm()
