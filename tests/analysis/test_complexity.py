"""Counts equal the published ones: integers for the six sizes, printed digits for ablations."""

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.analysis.complexity import complexity
from mobilemamba.models import VARIANTS, fuse_norms

# Model: all parameters, flops, multiply-adds without the scan, parameters and flops with the norms folded.
PUBLISHED = {
    "mobilemamba_t2": (8_836_890, 254_747_464, 251_717_544, 8_809_444, 252_219_672),
    "mobilemamba_t4": (14_176_090, 412_547_160, 408_698_440, 14_141_092, 409_350_472),
    "mobilemamba_s6": (15_036_632, 652_334_736, 646_707_632, 15_000_456, 647_565_424),
    "mobilemamba_b1": (17_122_849, 1_079_752_064, 1_069_918_208, 17_079_424, 1_071_592_960),
    "mobilemamba_b2": (17_122_849, 2_427_067_264, 2_404_942_208, 17_079_424, 2_408_710_400),
    "mobilemamba_b4": (17_122_849, 4_313_308_544, 4_273_975_808, 17_079_424, 4_280_674_816),
}

# S6 with these choices, at 224 px: flops and parameters in millions. The paper prints them, and no YAML file has them;
# the rows of those are counted in tests/sweep/test_counts.py.
ABLATIONS = {
    "8e-local-555": ((5, 5, 5), "652.25", "15.040"),
    "8e-local-777": ((7, 7, 7), "652.69", "15.051"),
}


def on_meta(name: str, **choices: Any) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisers have nothing to do on shapes alone
        return timm.create_model(name, **choices)


@pytest.mark.parametrize("name", PUBLISHED)
def test_six_sizes_to_the_integer(name: str) -> None:
    params, flops, macs_without_scan, _, _ = PUBLISHED[name]
    size = VARIANTS[name].img_size
    counts = complexity(on_meta(name), size)
    assert (counts.params, counts.flops) == (params, flops)
    assert counts.macs - scan_multiply_adds(name, size) == macs_without_scan


def scan_multiply_adds(name: str, size: int) -> int:
    """9 L D N + L D with D over both directions and N = 1, for every block."""
    config = VARIANTS[name].config
    side, total = -(-size // 16), 0
    for depth, (global_dim, _, _) in zip(config.depths, config.channel_splits, strict=True):
        total += depth * side**2 * (2 * 2 * global_dim) * 10
        side = -(-side // 2)
    return total


def test_the_scan_of_s6() -> None:
    assert scan_multiply_adds("mobilemamba_s6", 224) == 2_668_800


@pytest.mark.parametrize("name", PUBLISHED)
def test_fused_to_the_integer(name: str) -> None:
    *_, params, flops = PUBLISHED[name]
    counts = complexity(fuse_norms(on_meta(name)), VARIANTS[name].img_size)
    assert (counts.params, counts.flops) == (params, flops)


@pytest.mark.parametrize("row", ABLATIONS)
def test_other_ablations_to_the_printed_digits(row: str) -> None:
    kernel_sizes, flops, params = ABLATIONS[row]
    network = on_meta("mobilemamba_s6", kernel_sizes=kernel_sizes, wavelet_kernel_sizes=(7, 5, 3))
    counts = complexity(network, 224)
    assert (f"{counts.flops / 1e6:.2f}", f"{counts.params / 1e6:.3f}") == (flops, params)


def test_another_network_of_timm() -> None:
    counts = complexity(on_meta("efficientvit_m5"), 224)
    assert counts.params == 12_473_772
    assert f"{counts.macs / 1e6:.2f}" == "521.58"
    assert counts.flops > counts.macs  # its norms


def test_the_model_is_left_as_it_was() -> None:
    model = timm.create_model("mobilemamba_t2", num_classes=10).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = complexity(model, 64)
    assert complexity(model, 64) == first  # counting twice: no hook stays behind
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_rectangle_counts_in_its_own_proportion() -> None:
    model = on_meta("mobilemamba_t2", num_classes=0)
    assert complexity(model, (64, 128)) == complexity(model, (128, 64))
    assert complexity(model, (64, 64)).macs < complexity(model, (64, 128)).macs < complexity(model, (128, 128)).macs


def test_picture_channels_follow_the_model() -> None:
    grey, colour = (complexity(on_meta("mobilemamba_t2", in_chans=chans), 64) for chans in (1, 3))
    assert colour.macs - grey.macs == 2 * 18 * 9 * 32 * 32  # the first convolution's extra inputs


def test_an_example_in_place_of_a_size() -> None:
    model = on_meta("mobilemamba_t2")
    assert complexity(model, torch.empty(1, 3, 64, 96)) == complexity(model, (64, 96))
