"""Preprocessing of pictures for detection, and augmentation together with their boxes and masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilemamba.data.shared_transforms import Distort, fitted_size

Resize = Literal["fit", "stretch"]
Target = dict[str, Tensor]
_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)  # minimal IoU of boxes and crop, one of which is drawn
_SMALLEST = 0.3  # smallest side of a crop, as a fraction of the picture's
_ASPECTS = (0.5, 2.0)  # aspect ratios of a crop
_TRIES = 50  # attempts at a crop of one overlap
_PLACED: tuple[str, ...] = ("boxes", "masks")
_PER_OBJECT = (*_PLACED, "labels", "iscrowd", "area")


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes of training pictures; by default only a flip, as for the paper's RetinaNet and Mask R-CNN.

    The paper's SSDLite uses in addition ``expand`` 0.5, ``crop`` true, ``brightness`` 32 / 255, ``contrast`` and
    ``saturation`` 0.5, ``hue`` 0.05 and ``swap`` 0.5.

    Attributes:
        sides: For pictures that keep their aspect ratio: limits of the shorter side, one of which is drawn instead of
            that in ``img_size``; empty for the latter.
        hflip: Probability of a horizontal flip.
        expand: Probability that a picture is placed at random on a canvas up to 4 times as wide and high.
        crop: Whether to draw one of seven options: no crop, or a crop that contains the centre of a box and whose IoU
            with each box is at least 0, 0.1, 0.3, 0.5, 0.7 or 0.9.
        brightness: Largest value added to or subtracted from pixels in 0..1. This and the next three changes each apply
            to half of the pictures.
        contrast: Pixels are multiplied by a factor within 1 ± this.
        saturation: The saturation is multiplied by a factor within 1 ± this.
        hue: Largest change of the hue, in turns.
        swap: Probability that the colour channels are permuted.
    """

    sides: tuple[int, ...] = ()
    hflip: float = 0.5
    expand: float = 0.0
    crop: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    swap: float = 0.0

    @property
    def colours(self) -> tuple[float, float, float, float]:
        return self.brightness, self.contrast, self.saturation, self.hue


def eval_transform(
    img_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bilinear",
    antialias: bool = True,
    resize: Resize = "stretch",
) -> Callable[[Image.Image], Tensor]:
    """Returns the transform of a whole picture to a normalised (3, h, w) float32; takes the ``preprocessing`` entries.

    Args:
        img_size: Height and width to stretch to; or with ``fit``, limits of the shorter and longer side, see
            :func:`~mobilemamba.data.shared_transforms.fitted_size`.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling.
        antialias: Whether to antialias pictures that are scaled down.
        resize: ``stretch`` or ``fit``.
    """
    scale = _Scale(img_size, resize, v2.InterpolationMode(interpolation), antialias=antialias)
    steps = [v2.ToImage(), scale.image, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    return v2.Compose([*steps, v2.ToPureTensor()])


def train_transform(
    img_size: tuple[int, int],
    augmentation: DetectionAugmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bilinear",
    antialias: bool = True,
    resize: Resize = "stretch",
) -> Callable[[Image.Image, Target], tuple[Tensor, Target]]:
    """Returns the augmentation of a picture and its target; it draws from the global random generators.

    The transform takes a picture and its target, see :class:`~mobilemamba.data.batches.Boxes`, and returns the picture
    (3, h, w) float32, normalised, with the target changed accordingly. Objects that are cut off entirely are removed.

    Args:
        img_size: See :func:`eval_transform`.
        augmentation: The random changes.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling.
        antialias: Whether to antialias pictures that are scaled down.
        resize: See :func:`eval_transform`.
    """
    mode = v2.InterpolationMode(interpolation)
    fill = {tv_tensors.Image: [round(255 * value) for value in mean], "others": 0}
    steps = [
        _Wrap(),
        v2.RandomZoomOut(fill, p=augmentation.expand) if augmentation.expand else None,
        _Crop() if augmentation.crop else None,
        _Scale(img_size, resize, mode, antialias=antialias, sides=augmentation.sides),
        v2.RandomHorizontalFlip(augmentation.hflip),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        Distort(*augmentation.colours) if any(augmentation.colours) else None,
        v2.RandomApply([v2.RandomChannelPermutation()], augmentation.swap) if augmentation.swap else None,
        v2.Normalize(list(mean), list(std)),
        _Unwrap(),
    ]
    return v2.Compose([step for step in steps if step is not None])


class _Wrap:
    """Wraps tensors so that torchvision knows which are a picture, boxes and masks."""

    def __call__(self, picture: Image.Image, target: Target) -> tuple[Tensor, Target]:
        image = TF.to_image(picture)
        height, width = image.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        masks = {"masks": tv_tensors.Mask(target["masks"])} if "masks" in target else {}
        return image, {**target, "boxes": boxes, **masks}


class _Unwrap:
    """Undoes :class:`_Wrap`, adds the picture's size, and removes objects that are cut off entirely."""

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        boxes = plain["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        left = (boxes[:, 2:] > boxes[:, :2]).all(1)
        plain = _of_objects({**plain, "boxes": boxes, "size": torch.tensor([height, width])}, left)
        return image.as_subclass(Tensor), plain


class _Scale:
    """Scales a picture, its boxes and its masks to a size, or until one of its sides reaches its limit."""

    def __init__(
        self,
        size: tuple[int, int],
        resize: Resize,
        mode: v2.InterpolationMode,
        *,
        antialias: bool,
        sides: tuple[int, ...] = (),
    ) -> None:
        self.size, self.resize, self.mode, self.antialias, self.sides = size, resize, mode, antialias, sides

    def image(self, image: Tensor) -> Tensor:
        return TF.resize(image, self._size_of(image), self.mode, antialias=self.antialias)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        size = self._size_of(image)
        scaled = {name: TF.resize(target[name], size) for name in _PLACED if name in target}
        return TF.resize(image, size, self.mode, antialias=self.antialias), {**target, **scaled}

    def _size_of(self, image: Tensor) -> list[int]:
        if self.resize == "stretch":
            return list(self.size)
        drawn = [self.sides[int(torch.randint(len(self.sides), ()))]] if self.sides else self.size[:1]
        return fitted_size(image.shape[-2:], [*drawn, self.size[1]])


class _Crop:
    """Crops at random with a minimal IoU with all boxes, and removes objects whose centre is outside the crop.

    Used instead of torchvision's, which requires that overlap with only one box.
    """

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        boxes = target["boxes"].as_subclass(Tensor)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        while (drawn := int(torch.randint(len(_OVERLAPS) + 2, ()))) < len(_OVERLAPS) + 1:
            overlap = (0.0, *_OVERLAPS)[drawn]
            for _ in range(_TRIES):
                (down, high), (across, wide) = (_stretch(side) for side in (height, width))
                if not (min(high, wide) and _ASPECTS[0] <= high / wide <= _ASPECTS[1]):
                    continue
                piece = torch.tensor([[across, down, across + wide, down + high]], dtype=torch.float32)
                if len(boxes) and box_iou(piece, boxes).min() < overlap:
                    continue
                inside = ((centres > piece[:, :2]) & (centres < piece[:, 2:])).all(1)
                if len(boxes) and not inside.any():
                    continue
                target = _of_objects(target, inside)
                cut = {name: TF.crop(target[name], down, across, high, wide) for name in _PLACED if name in target}
                return TF.crop(image, down, across, high, wide), {**target, **cut}
        return image, target


def _stretch(side: int) -> tuple[int, int]:
    """Draws the start and the length of a crop along a side."""
    length = side * (_SMALLEST + (1 - _SMALLEST) * float(torch.rand(())))
    start = (side - length) * float(torch.rand(()))
    return int(start), int(start + length) - int(start)


def _of_objects(target: Target, which_N: Tensor) -> Target:
    """Returns the target with only the objects at ``which_N``."""
    chosen = {name: tv_tensors.wrap(target[name][which_N], like=target[name]) for name in _PER_OBJECT if name in target}
    return {**target, **chosen}
