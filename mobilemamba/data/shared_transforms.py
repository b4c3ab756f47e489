"""What detection and segmentation share of preprocessing and augmentation."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

_Target = TypeVar("_Target")


def fitted_size(size: Sequence[int], limits: Sequence[float]) -> list[int]:
    """Returns height and width of a picture scaled until its shorter or its longer side reaches its limit.

    Args:
        size: Height and width before scaling.
        limits: Limits of the shorter and of the longer side.
    """
    factor = min(limits[0] / min(size), limits[1] / max(size))
    return [max(1, int(side * factor + 0.5)) for side in size]


class Distort:
    """Changes the colours of a picture in 0..1; unlike torchvision's, adds brightness and does not swap channels.

    Args:
        brightness: Largest value added to or subtracted from pixels.
        contrast: Pixels are multiplied by a factor within 1 ± this.
        saturation: The saturation is multiplied by a factor within 1 ± this.
        hue: Largest change of the hue, in turns.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, image: Tensor, target: _Target) -> tuple[Tensor, _Target]:
        brightness, contrast, saturation, hue = (uniform(0, 1) < 0.5 for _ in range(4))
        contrast_first = uniform(0, 1) < 0.5
        factor = uniform(1 - self.contrast, 1 + self.contrast)
        if brightness:
            image = (image + uniform(-self.brightness, self.brightness)).clamp(0, 1)
        if contrast and contrast_first:
            image = (image * factor).clamp(0, 1)
        if saturation:
            image = _saturate(image, uniform(1 - self.saturation, 1 + self.saturation))
        if hue:
            image = TF.adjust_hue(image, uniform(-self.hue, self.hue))
        if contrast and not contrast_first:
            image = (image * factor).clamp(0, 1)
        return image, target


def _saturate(image: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation of HSV, clamped to 1; hue and value, the largest channel, stay unchanged."""
    value = image.amax(0)
    saturation = (value - image.amin(0)) / value.clamp(min=1e-6)
    return value - (value - image) * (factor * saturation).clamp(max=1) / saturation.clamp(min=1e-6)


def uniform(low: float, high: float) -> float:
    """Draws a number from torch's global generator."""
    return low + (high - low) * float(torch.rand(()))
