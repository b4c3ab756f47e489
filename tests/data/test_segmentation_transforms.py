from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.sampling import seeded
from mobilemamba.data.segmentation_transforms import SegmentationAugmentation, eval_transform, train_transform

NONE = SegmentationAugmentation((1, 1), 1, 0, 0, 0, 0, 0)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def four_classes(height: int = 40, width: int = 60) -> tuple[Image.Image, Tensor]:
    """A picture whose colour tells the class of each pixel: red is 60 times it."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 2 :] += 1
    mask[:, width // 2 :] += 2
    image = torch.stack([mask * 60, torch.full_like(mask, 30), torch.full_like(mask, 90)])
    return TF.to_pil_image(image), tv_tensors.Mask(mask)


def changed(
    picture: Image.Image, mask: Tensor, augmentation: SegmentationAugmentation, seed: int = 0, size: Any = (32, 32)
) -> tuple[Tensor, Tensor]:
    with seeded(seed):
        image, mask = train_transform(size, augmentation, MEAN, STD)(picture, tv_tensors.Mask(mask))
    return image * 0.25 + 0.5, mask


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 683)),
        ((364, 500), (512, 703)),  # 703.3
        ((683, 512), (683, 512)),
        ((100, 1000), (205, 2048)),  # 204.8
    ],
)
def test_whole_pictures_are_scaled_as_in_the_papers_test(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert eval_transform((512, 512), MEAN, STD)(Image.new("RGB", size[::-1])).shape == (3, *expected)


def test_evaluation_scales_and_normalises() -> None:
    picture = Image.new("RGB", (30, 20), (255, 0, 128))
    image = eval_transform((64, 80), MEAN, STD)(picture)
    assert image.shape == (3, 64, 96)
    assert image.dtype == torch.float32
    assert image.mean((1, 2)).tolist() == pytest.approx([2, -2, (128 / 255 - 0.5) / 0.25], abs=1e-5)


def test_thin_pictures_are_stretched_to_what_networks_take() -> None:
    transform = eval_transform((64, 64), MEAN, STD)
    assert [transform(Image.new("RGB", size)).shape[1:] for size in ((2, 300), (1, 1))] == [(256, 32), (64, 64)]
    assert eval_transform((16, 16), MEAN, STD)(Image.new("RGB", (30, 20))).shape[1:] == (16, 24), "if so asked"


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1, 1), (2, 2), (0.5, 2)])
@pytest.mark.parametrize("size", [(32, 32), (24, 50)])
def test_picture_and_mask_change_together(scale: tuple[float, float], size: tuple[int, int]) -> None:
    picture, mask = four_classes()
    augmentation = replace(NONE, scale=scale, hflip=0.5)
    for seed in range(10):
        image, classes = changed(picture, mask, augmentation, seed, size)
        assert image.shape == (3, *size)
        assert classes.shape == size
        assert type(classes) is type(image) is Tensor
        assert classes.dtype == torch.int64
        inside = classes != IGNORED_PIXEL
        assert ((image[0] * 255 / 60)[inside].round() == classes[inside]).float().mean() > 0.9
        assert torch.allclose(image[:, ~inside], torch.tensor(0.5))  # 0 when normalised


def test_what_is_missing_is_filled_on_the_right_and_below() -> None:
    picture, mask = four_classes(40, 60)
    _, classes = changed(picture, mask, replace(NONE, scale=(0.5, 0.5)))
    assert (classes[:16, :24] != IGNORED_PIXEL).all()  # 40 x 60 becomes 16 x 24
    assert (classes != IGNORED_PIXEL).sum() == 16 * 24


def test_labels_are_not_blended() -> None:
    picture, _ = four_classes()
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[:, 30:] = 200
    _, classes = changed(picture, mask, replace(NONE, scale=(2, 2), max_share=0.75))
    assert classes.unique().tolist() == [0, 200]


def test_crops_of_one_class_are_drawn_again() -> None:
    picture, _ = four_classes(32, 128)
    mask = torch.zeros(32, 128, dtype=torch.uint8)
    mask[:, 64:] = 1
    mask[:, ::2] = IGNORED_PIXEL  # which is not counted

    def varied(max_share: float) -> int:
        crops = (changed(picture, mask, replace(NONE, max_share=max_share), seed)[1] for seed in range(60))
        return sum({0, 1} <= set(crop.unique().tolist()) for crop in crops)

    assert varied(1) < 30
    assert varied(0.75) > 40


def only(**strength: float) -> SegmentationAugmentation:
    return replace(NONE, **strength)  # type: ignore[arg-type]


def values(augmentation: SegmentationAugmentation, colour: tuple[int, int, int]) -> Tensor:
    """Colours (K, 3) in 0..1 that become of one, of many drawings."""
    picture, mask = Image.new("RGB", (4, 4), colour), torch.zeros(4, 4, dtype=torch.uint8)
    found = [changed(picture, mask, augmentation, seed, (4, 4))[0][:, 0, 0] for seed in range(80)]
    return torch.stack(found)


@pytest.mark.parametrize(
    ("augmentation", "measure", "low", "high"),
    [
        (only(brightness=32 / 255), lambda rgb: (rgb - torch.tensor([120, 90, 60]) / 255).mean(1), -0.125, 0.125),
        (only(contrast=0.5), lambda rgb: rgb[:, 1] / (90 / 255), 0.5, 1.5),
        (only(saturation=0.5), lambda rgb: 2 * (1 - rgb.amin(1) / rgb.amax(1)), 0.5, 1.5),
    ],
)
def test_strength_of_the_changes(
    augmentation: SegmentationAugmentation, measure: Callable[[Tensor], Tensor], low: float, high: float
) -> None:
    found = measure(values(augmentation, (120, 90, 60)))
    assert low - 0.01 < found.min() < low + 0.15 * (high - low)
    assert high - 0.15 * (high - low) < found.max() < high + 0.01
    unchanged = (found - (low + high) / 2).abs() < 1e-3
    assert 25 < unchanged.sum() < 60  # every second picture


def test_hue_turns_and_channels_stay() -> None:
    found = values(only(hue=0.1), (200, 50, 50))
    assert torch.allclose(found.amax(1), torch.tensor(200 / 255), atol=1e-3)
    assert torch.allclose(found.amin(1), torch.tensor(50 / 255), atol=1e-3)
    assert (found.argmax(1) == 0).all()  # a tenth of the circle from red is still mostly red
    assert (found[:, 1] > 0.3).any()
    assert (found[:, 2] > 0.3).any()


def test_saturation_keeps_hue_and_value() -> None:
    found = values(only(saturation=0.5), (120, 90, 60))
    assert torch.allclose(found[:, 0], torch.tensor(120 / 255), atol=1e-3)
    assert torch.allclose((found[:, 1] - found[:, 2]) / (found[:, 0] - found[:, 2]), torch.tensor(0.5), atol=0.01)
    assert values(only(saturation=0.5), (200, 10, 0)).min() >= 0, "no more than saturated"


def test_grey_and_black_stay_finite() -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (77, 77, 77)):
        assert values(SegmentationAugmentation(), colour).isfinite().all()


def test_one_pixel_and_masks_without_a_class() -> None:
    picture = Image.fromarray(np.zeros((1, 1, 3), np.uint8))
    mask = torch.full((1, 1), IGNORED_PIXEL, dtype=torch.uint8)
    image, classes = changed(picture, mask, SegmentationAugmentation())
    assert image.isfinite().all()
    assert (classes == IGNORED_PIXEL).all()
