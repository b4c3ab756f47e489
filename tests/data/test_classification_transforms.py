from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from mobilemamba.data.classification_transforms import Augmentation, eval_transform, train_transform
from mobilemamba.data.pictures import read_picture
from mobilemamba.errors import ConfigError

AUGMENTATION = Augmentation((0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.4, None, 0.25, "pixel")


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "green").save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    for transform in (eval_transform((16, 16)), train_transform((16, 16), AUGMENTATION)):
        assert transform(picture).shape == (3, 16, 16)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(20_000, 20), (20, 20_000)])
def test_a_very_long_picture_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], training: bool
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    assert picture.size == size
    areas = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: Any, *args: Any, **kwargs: Any) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    transform = train_transform((224, 224), AUGMENTATION) if training else eval_transform((224, 224), crop_pct=0.875)
    assert transform(picture).shape == (3, 224, 224)
    assert areas
    assert max(areas) <= 10 * 256 * 256  # whole, it would be scaled to 256,000 x 256


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 32)])
@pytest.mark.parametrize("picture", [(100, 300), (300, 100), (70, 64), (20, 160)])
def test_evaluation_is_timms(size: tuple[int, int], picture: tuple[int, int]) -> None:
    how: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear"}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*picture, 3), np.uint8))
    expected = create_transform(size, crop_pct=0.9, **how)(image)
    assert torch.equal(eval_transform(size, crop_pct=0.9, **how)(image), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_centre_of_a_longer_picture_is_the_same(axis: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 2000).astype(np.uint8)[:, None, None], (2000, 20, 3)).swapaxes(0, axis)
    image = Image.fromarray(np.ascontiguousarray(ramp))
    whole = create_transform(32, interpolation="bilinear", crop_pct=1.0)(image)
    assert (eval_transform((32, 32), interpolation="bilinear", crop_pct=1.0)(image) - whole).abs().max() < 0.05


def test_an_unknown_policy_is_refused() -> None:
    for policy in ("nonsense", "rand-x9"):
        with pytest.raises(
            ConfigError, match=rf"data.augmentation.auto_augment '{policy}' is not one of timm's policies"
        ):
            train_transform((32, 32), Augmentation((0.1, 1), (1, 1), 0.5, 0.4, policy, 0, "pixel"))
