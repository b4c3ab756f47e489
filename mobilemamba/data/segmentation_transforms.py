"""Preparing pictures for segmentation, and changing them at random together with their masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilemamba.data.batches import IGNORED_PIXEL

_LONGEST = 4  # times the shorter side: a longer picture is scaled to this length
_LEAST = 32  # pixels a side that networks take; what is smaller is stretched, as masks are compared at their own size
_TRIES = 10  # at a crop with more than one class


@dataclass(frozen=True)
class SegmentationAugmentation:
    """The random changes of training pictures; by default those of the paper's training on ADE20K.

    Each change of colours comes to every second picture.

    Attributes:
        scale: A picture's shorter side before it is cropped, as a multiple of ``img_size``, least and largest.
        max_share: Crops of which one class takes a greater share are drawn again, 10 times at most; 1 takes any.
        hflip: Probability of a horizontal flip.
        brightness: What is added to pixels in 0..1, at most.
        contrast: Pixels are multiplied by 1 more or less than this, at most.
        saturation: So is the saturation.
        hue: What is added to the hue, in turns, at most.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    hflip: float = 0.5
    brightness: float = 32 / 255
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1


def scaled_size(size: Sequence[int], shorter: float) -> list[int]:
    """Height and width of a picture scaled until its shorter side is ``shorter``, or its longer one 4 times that."""
    factor = min(shorter / min(size), _LONGEST * shorter / max(size))
    return [max(1, int(side * factor + 0.5)) for side in size]


def eval_transform(
    img_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Callable[[Image.Image], Tensor]:
    """Return what makes a normalised (3, h, w) float32 of a whole picture; takes what ``preprocessing`` names.

    Args:
        img_size: The picture's shorter side becomes the shorter of these, see :func:`scaled_size`; nothing is cut off.
            A side that falls below 32 and these so, as of a very thin picture, is stretched to that.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.
        interpolation: Of the scaling.
        antialias: Whether pixels are averaged in scaling down.
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
    """Return what changes a picture and its mask (H, W) uint8 at random; it draws from global streams.

    Gives the picture, normalised, float32, and the mask int64, both of ``img_size``: where the picture does not reach,
    0 and ``IGNORED_PIXEL``.

    Args:
        img_size: Height and width in pixels.
        augmentation: The random changes.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.
        interpolation: Of the scaling.
        antialias: Whether pixels are averaged in scaling down.
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
_Target = TypeVar("_Target")


class _ToSide:
    """Scales a picture to a shorter side, and stretches what would be too thin for a network."""

    def __init__(self, side: int, mode: v2.InterpolationMode, *, antialias: bool) -> None:
        self.side, self.mode, self.antialias = side, mode, antialias

    def __call__(self, image: Tensor) -> Tensor:
        least = min(_LEAST, self.side)
        size = [max(least, side) for side in scaled_size(image.shape[-2:], self.side)]
        return TF.resize(image, size, self.mode, antialias=self.antialias)


class _Scale:
    """Scales a picture and its mask by a random factor; both keep their shape."""

    def __init__(self, side: int, scale: tuple[float, float], mode: v2.InterpolationMode, *, antialias: bool) -> None:
        self.side, self.scale, self.mode, self.antialias = side, scale, mode, antialias

    def __call__(self, image: Tensor, mask: Tensor) -> Pair:
        size = scaled_size(image.shape[-2:], self.side * _uniform(*self.scale))
        return TF.resize(image, size, self.mode, antialias=self.antialias), TF.resize(mask, size)


class _Crop:
    """Cuts out a random piece, if possible one that is not mostly of one class; a smaller side stays as it is."""

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


class Distort:
    """Changes the colours of a picture in 0..1. Not torchvision's, which multiplies brightness and swaps channels.

    Args:
        brightness: What is added at most.
        contrast: By how much more or less than 1 is multiplied at most.
        saturation: Likewise.
        hue: What is added at most, in turns.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, image: Tensor, target: _Target) -> tuple[Tensor, _Target]:
        brightness, contrast, saturation, hue = (_uniform(0, 1) < 0.5 for _ in range(4))
        contrast_first = _uniform(0, 1) < 0.5
        factor = _uniform(1 - self.contrast, 1 + self.contrast)
        if brightness:
            image = (image + _uniform(-self.brightness, self.brightness)).clamp(0, 1)
        if contrast and contrast_first:
            image = (image * factor).clamp(0, 1)
        if saturation:
            image = _saturate(image, _uniform(1 - self.saturation, 1 + self.saturation))
        if hue:
            image = TF.adjust_hue(image, _uniform(-self.hue, self.hue))
        if contrast and not contrast_first:
            image = (image * factor).clamp(0, 1)
        return image, target


class _Fill:
    """Adds, to the right and below, what is missing to a size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Tensor, mask: Tensor) -> Pair:
        missing = [0, 0, self.size[1] - mask.shape[-1], self.size[0] - mask.shape[-2]]
        return TF.pad(image, missing), TF.pad(mask, missing, fill=IGNORED_PIXEL)


def _saturate(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most up to 1; hue and value, the largest channel, stay."""
    value = image.amax(0)
    saturation = (value - image.amin(0)) / value.clamp(min=1e-6)
    return value - (value - image) * (factor * saturation).clamp(max=1) / saturation.clamp(min=1e-6)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
