"""Preprocessing of pictures for segmentation, and augmentation together with their masks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.shared_transforms import Distort, fitted_size, uniform

_LONGEST = 4  # limit of the longer side, as a multiple of the target for the shorter side
_LEAST = 32  # smallest side in pixels for a network; pictures are stretched to it, as masks keep their own size
_TRIES = 10  # attempts at a crop with more than one class


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Random changes of training pictures; by default those of the paper's training on ADE20K.

    Each change of colours applies to half of the pictures.

    Attributes:
        scale: Smallest and largest shorter side of a picture before it is cropped, as a multiple of ``img_size``.
        max_share: A crop in which one class covers a larger fraction is drawn again, at most 10 times; 1 for any crop.
        hflip: Probability of a horizontal flip.
        brightness: Largest value added to or subtracted from pixels in 0..1.
        contrast: Pixels are multiplied by a factor within 1 ± this.
        saturation: The saturation is multiplied by a factor within 1 ± this.
        hue: Largest change of the hue, in turns.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    hflip: float = 0.5
    brightness: float = 32 / 255
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1


def eval_transform(
    img_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Callable[[Image.Image], Tensor]:
    """Returns the transform of a whole picture to a normalised (3, h, w) float32; takes the ``preprocessing`` entries.

    Args:
        img_size: Height and width, of which the smaller is the target for the picture's shorter side, and four times
            this the limit of its longer side; nothing is cropped. If a very thin picture's side would be under 32
            pixels and smaller than that target, it is stretched to the smaller of the two.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling.
        antialias: Whether to antialias pictures that are scaled down.
    """
    return v2.Compose(
        [
            v2.PILToTensor(),
            _ToSide(min(img_size), v2.InterpolationMode(interpolation), antialias=antialias),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def train_transform(
    img_size: tuple[int, int],
    augmentation: SegmentationAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Callable[[Image.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]:
    """Returns the augmentation of a picture and its mask (H, W) uint8; it draws from the global random generators.

    The transform returns the normalised picture float32 and the mask int64, both of ``img_size``; outside the picture
    they are padded with 0 and ``IGNORED_PIXEL``.

    Args:
        img_size: Height and width in pixels.
        augmentation: The random changes.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling.
        antialias: Whether to antialias pictures that are scaled down.
    """
    return v2.Compose(
        [
            v2.ToImage(),
            _Scale(min(img_size), augmentation.scale, v2.InterpolationMode(interpolation), antialias=antialias),
            _Crop(img_size, augmentation.max_share),
            v2.RandomHorizontalFlip(augmentation.hflip),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
            Distort(augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue),
            v2.Normalize(list(mean), list(std)),
            _Fill(img_size),
            v2.ToPureTensor(),
        ]
    )


Pair = tuple[Tensor, Tensor]


class _ToSide:
    """Scales a picture to a given shorter side, and stretches it if it would be too thin for a network."""

    def __init__(self, side: int, mode: v2.InterpolationMode, *, antialias: bool) -> None:
        self.side, self.mode, self.antialias = side, mode, antialias

    def __call__(self, image: Tensor) -> Tensor:
        least = min(_LEAST, self.side)
        size = [max(least, side) for side in fitted_size(image.shape[-2:], (self.side, _LONGEST * self.side))]
        return TF.resize(image, size, self.mode, antialias=self.antialias)


class _Scale:
    """Scales a picture and its mask by a random factor, keeping their aspect ratio."""

    def __init__(self, side: int, scale: tuple[float, float], mode: v2.InterpolationMode, *, antialias: bool) -> None:
        self.side, self.scale, self.mode, self.antialias = side, scale, mode, antialias

    def __call__(self, image: Tensor, mask: Tensor) -> Pair:
        shorter = self.side * uniform(*self.scale)
        size = fitted_size(image.shape[-2:], (shorter, _LONGEST * shorter))
        return TF.resize(image, size, self.mode, antialias=self.antialias), TF.resize(mask, size)


class _Crop:
    """Crops at random, if possible so that no class covers most of the crop; a side that is smaller is not cropped."""

    def __init__(self, size: tuple[int, int], max_share: float) -> None:
        self.size, self.max_share = size, max_share

    def __call__(self, image: Tensor, mask: Tensor) -> Pair:
        height, width = (min(side, own) for side, own in zip(self.size, mask.shape[-2:], strict=True))
        for _ in range(_TRIES):
            top, left = (
                int(torch.randint(own - side + 1, ()))
                for side, own in zip((height, width), mask.shape[-2:], strict=True)
            )
            piece = TF.crop(mask, top, left, height, width)
            pixels = piece[piece != IGNORED_PIXEL].flatten().bincount()
            if self.max_share >= 1 or (len(pixels) and pixels.max() < self.max_share * pixels.sum()):
                break
        return TF.crop(image, top, left, height, width), piece


class _Fill:
    """Pads to a size on the right and at the bottom."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Tensor, mask: Tensor) -> Pair:
        missing = [0, 0, self.size[1] - mask.shape[-1], self.size[0] - mask.shape[-2]]
        return TF.pad(image, missing), TF.pad(mask, missing, fill=IGNORED_PIXEL)
