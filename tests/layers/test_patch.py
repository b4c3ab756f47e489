"""Sizes of the maps behind the stem and the downsampling."""

import pytest
import torch

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.patch import PatchEmbed, PatchMerging

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize(("side", "expected"), [(224, 14), (192, 12), (512, 32), (33, 3), (32, 2)])
def test_stem_has_stride_16(side: int, expected: int) -> None:
    assert PatchEmbed(3, 32).eval()(torch.randn(1, 3, side, 32)).shape == (1, 32, expected, 2)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 98)], ids=str)
def test_the_fine_stem_has_stride_4(size: tuple[int, int]) -> None:
    stem = PatchEmbed(3, 48, stride=4)
    assert stem(torch.randn(2, 3, *size)).shape == (2, 48, *(-(-side // 4) for side in size))
    assert sum(p.numel() for p in stem.parameters()) == 9 * 3 * 24 + 9 * 24 * 48 + 2 * (24 + 48)


@pytest.mark.parametrize(("side", "expected"), [(14, 7), (7, 4), (6, 3), (3, 2), (1, 1)])
def test_merging_has_stride_2(side: int, expected: int) -> None:
    assert PatchMerging(8, 12).eval()(torch.randn(1, 8, side, 4)).shape == (1, 12, expected, 2)


def test_merging_widens_fourfold_and_squeezes_to_a_quarter() -> None:
    merging = PatchMerging(16, 24)
    assert merging.dw.conv.groups == 64
    assert merging.se.fc1.out_channels == 16


def test_rectifiers_stand_behind_all_convolutions_but_the_last() -> None:
    for layers, last in ((PatchEmbed(3, 32).eval(), "6"), (PatchMerging(16, 24).eval(), "project")):
        for name, layer in layers.named_children():
            if isinstance(layer, ConvNorm):
                y = layer(torch.randn(2, layer.conv.in_channels, 8, 8))
                assert bool((y < 0).any()) == (name == last)
