"""Counts equal the published ones: integers for the six sizes, printed digits for every row of the ablations."""

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.analysis.complexity import complexity
from mobilemamba.models import VARIANTS, fuse_norms

# Model: all parameters, flops, multiply-adds without the scan, parameters and flops with the norms fused.
PUBLISHED = {
    "mobilemamba_t2": (8_836_890, 254_747_464, 251_717_544, 8_809_444, 252_219_672),
    "mobilemamba_t4": (14_176_090, 412_547_160, 408_698_440, 14_141_092, 409_350_472),
    "mobilemamba_s6": (15_036_632, 652_334_736, 646_707_632, 15_000_456, 647_565_424),
    "mobilemamba_b1": (17_122_849, 1_079_752_064, 1_069_918_208, 17_079_424, 1_071_592_960),
    "mobilemamba_b2": (17_122_849, 2_427_067_264, 2_404_942_208, 17_079_424, 2_408_710_400),
    "mobilemamba_b4": (17_122_849, 4_313_308_544, 4_273_975_808, 17_079_424, 4_280_674_816),
}

STANDARD = {"global_ratio": (0.8, 0.7, 0.6), "local_ratio": (0.2, 0.2, 0.3)}


def dims(*embed_dims: int, depths: tuple[int, ...], **ratios: Any) -> dict[str, Any]:
    return {"embed_dims": embed_dims, "depths": depths, **(ratios or STANDARD)}


def ratios(global_ratio: tuple[float, ...], local_ratio: tuple[float, ...]) -> dict[str, Any]:
    return {"global_ratio": global_ratio, "local_ratio": local_ratio}


# Name: S6 with these choices, at 224 px; flops and parameters in millions.
ABLATIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "A1-1": (ratios((0.6, 0.6, 0.6), (0.4, 0.3, 0.3)), "619.78", "14.615"),
    "A1-2": (ratios((0.7, 0.6, 0.5), (0.2, 0.2, 0.3)), "619.35", "14.318"),
    "A1-3": (ratios((0.8, 0.6, 0.6), (0.2, 0.3, 0.3)), "636.83", "14.711"),
    "A1-4": (ratios((0.8, 0.7, 0.6), (0.2, 0.3, 0.4)), "652.46", "15.040"),
    "A1-5": (ratios((0.8, 0.8, 0.8), (0.2, 0.1, 0.1)), "674.85", "15.953"),
    "A1-6-printed": (ratios((0.0, 0.7, 0.8), (1.0, 0.2, 0.1)), "629.05", "15.500"),
    "A1-6-corrected": (ratios((0.0, 0.7, 0.6), (1.0, 0.2, 0.3)), "618.47", "14.833"),
    "A1-7": (ratios((0.6, 0.7, 0.8), (0.4, 0.2, 0.1)), "645.87", "15.607"),
    "A1-8": (STANDARD, "652.33", "15.037"),
    "A2-1": (
        dims(192, 320, 368, depths=(1, 3, 4), **ratios((0, 0.75, 0.75), (0.9, 0.15, 0.15))),
        "632.27",
        "15.942",
    ),
    "A2-2": (dims(172, 320, 368, depths=(1, 3, 4), **ratios((0.65,) * 3, (0.25,) * 3)), "581.10", "15.065"),
    "A2-3": (dims(180, 336, 368, depths=(1, 3, 4), **ratios((0.5,) * 3, (0.4,) * 3)), "595.09", "14.857"),
    "A2-4": (dims(192, 336, 368, depths=(1, 3, 4), **ratios((0.4,) * 3, (0.5,) * 3)), "599.10", "14.235"),
    "A2-5": (dims(208, 400, 464, depths=(1, 2, 2), **ratios((0.6, 0.5, 0.4), (0.3, 0.4, 0.5))), "678.33", "15.160"),
    "A2-6": (dims(224, 336, 400, depths=(1, 2, 2)), "659.07", "12.631"),
    "A2-7": (dims(208, 384, 416, depths=(1, 2, 2)), "680.53", "14.455"),
    "A2-8": (dims(176, 384, 480, depths=(1, 2, 2)), "621.63", "15.650"),
    "A3-1": (dims(160, 304, 448, depths=(2, 3, 3), **ratios((0.15, 0.55, 0.55), (0.35,) * 3)), "559.82", "14.778"),
    "A3-2": (dims(128, 256, 384, depths=(3, 4, 5), **ratios((0.15, 0.55, 0.55), (0.35,) * 3)), "509.93", "15.001"),
    "A3-3": (dims(208, 416, 624, depths=(1, 1, 1)), "647.65", "15.281"),
    "A3-4": (dims(192, 384, 576, depths=(1, 2, 1)), "651.01", "15.068"),
    "A4-777": ({"kernel_sizes": (7, 7, 7)}, "652.69", "15.190"),
    "A4-553": ({"kernel_sizes": (5, 5, 3)}, "652.18", "15.021"),
    "A4-533": ({"kernel_sizes": (5, 3, 3)}, "652.07", "14.983"),
    "A4-753": ({"kernel_sizes": (7, 5, 3)}, "652.33", "15.037"),
    "8d-S4-R1-D1": ({"directions": 4, "ssm_ratio": 1}, "607.23", "14.052"),
    "8d-S4-R1-D16": ({"directions": 4, "ssm_ratio": 1, "d_state": 16}, "651.26", "14.277"),
    "8d-S4-R2-D1": ({"directions": 4}, "662.86", "15.222"),
    "8d-S2-R1-D16": ({"ssm_ratio": 1, "d_state": 16}, "623.98", "14.072"),
    "8e-local-333": ({"kernel_sizes": (3, 3, 3), "wavelet_kernel_sizes": (7, 5, 3)}, "651.96", "15.033"),
    "8e-local-555": ({"kernel_sizes": (5, 5, 5), "wavelet_kernel_sizes": (7, 5, 3)}, "652.25", "15.040"),
    "8e-local-777": ({"kernel_sizes": (7, 7, 7), "wavelet_kernel_sizes": (7, 5, 3)}, "652.69", "15.051"),
    # The release would keep the scale that only the wavelet branch makes necessary: 14.886.
    "8f-no-wavelet": ({"wavelet": "none"}, "651.74", "14.885"),
    "8a-224px": (dims(128, 224, 320, depths=(1, 2, 2)), "268.70", "6.486"),
    "8b-2305M": (dims(336, 560, 784, depths=(2, 3, 3)), "2305.22", "50.727"),
    "8b-4374M": (dims(400, 576, 800, depths=(4, 6, 4)), "4374.26", "79.396"),
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
def test_every_ablation_to_the_printed_digits(row: str) -> None:
    choices, flops, params = ABLATIONS[row]
    counts = complexity(on_meta("mobilemamba_s6", **choices), 224)
    assert (f"{counts.flops / 1e6:.2f}", f"{counts.params / 1e6:.3f}") == (flops, params)


def test_160_px_of_table_8a() -> None:
    counts = complexity(on_meta("mobilemamba_s6", embed_dims=(160, 336, 400)), 160)
    assert (f"{counts.flops / 1e6:.2f}", f"{counts.params / 1e6:.3f}") == ("251.90", "11.669")


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
