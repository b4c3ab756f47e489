"""Preprocessing and augmentation of pictures for classification."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from mobilemamba.errors import ConfigError

# Evaluation uses only the centre: of a long picture, a length of this many times the crop's is enough.
_CENTRE_MARGIN = 8


@dataclass(frozen=True)
class Augmentation:
    """timm's random changes of training pictures.

    Attributes:
        scale: Smallest and largest area of a random crop, as a fraction of the picture.
        ratio: Smallest and largest ratio of width to height of a random crop.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of the change of brightness, contrast and saturation; not used with ``auto_augment``.
        auto_augment: Name of timm's policy, e.g. ``rand-m9-mstd0.5-inc1``; null for none.
        re_prob: Probability of random erasing.
        re_mode: Fill of erased areas: zeros (``const``), one random colour (``rand``), or random pixels (``pixel``).
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.3
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"


def train_transform(
    img_size: tuple[int, int],
    augmentation: Augmentation,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
) -> Callable[[Image.Image], Tensor]:
    """Returns the augmentation of a picture, which yields a normalised (3, H, W) float32.

    It draws from the global random generators.

    Args:
        img_size: Height and width in pixels.
        augmentation: The random changes.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling: ``"bilinear"``, ``"bicubic"``, or ``"random"`` for either of them.

    Raises:
        ConfigError: If ``auto_augment`` is no policy of timm.
    """
    try:
        return create_transform(
            (img_size[0], img_size[1]),
            is_training=True,
            mean=mean,
            std=std,
            interpolation=interpolation,
            **vars(augmentation),
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"data.augmentation.auto_augment {augmentation.auto_augment!r} is not one of timm's policies ({error}): "
            "give for example rand-m9-mstd0.5-inc1, or null"
        ) from error


def eval_transform(
    img_size: tuple[int, int],
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
) -> Callable[[Image.Image], Tensor]:
    """Returns the transform of a picture's centre to a normalised (3, H, W) float32; takes ``preprocessing`` entries.

    Args:
        img_size: Height and width in pixels.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        interpolation: Interpolation of the scaling.
        crop_pct: The short side is scaled to ``img_size / crop_pct``, and the centre is cropped.
    """
    transform = create_transform(
        (img_size[0], img_size[1]),
        is_training=False,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
    )
    return _Centred(transform, _CENTRE_MARGIN * max(img_size) // min(img_size))


class _Centred:
    """Crops very long pictures before a transform, as scaling them whole could take a thousand times the memory."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], aspect: int) -> None:
        self.transform = transform
        self.aspect = aspect

    def __call__(self, picture: Image.Image) -> Tensor:
        width, height = picture.size
        longest = self.aspect * min(width, height)
        if max(width, height) > longest:
            left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
            picture = picture.crop((left, top, min(width, left + longest), min(height, top + longest)))
        return self.transform(picture)
