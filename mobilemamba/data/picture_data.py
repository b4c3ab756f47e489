"""What data modules whose pictures are read one by one have in common: preparation, augmentation, unreadable ones."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from mobilemamba.data.base import ImageDataModule
from mobilemamba.data.picture_set import PictureSet, Source
from mobilemamba.data.pictures import Augmentation, eval_transform, train_transform
from mobilemamba.errors import ConfigError, DataError

Interpolation = Literal["bilinear", "bicubic", "random"]


class PictureDataModule(ImageDataModule):
    """Base of data modules that list their pictures in :attr:`sources`.

    Here stand the arguments that they share; those from ``scale`` to ``re_mode`` come here as one ``augmentation``.

    Args:
        root: The folder.
        img_size: Side in pixels, or (height, width); None is what the model wants, in Python 224.
        num_workers: Processes that load; None takes one per CPU, 8 at most.
        mean: Per channel, of pictures in 0..1; None is what the model wants, in Python ImageNet's.
        std: Per channel, of pictures in 0..1; None is what the model wants, in Python ImageNet's.
        interpolation: Of the scaling; None is what the model wants, in Python bicubic. ``random`` draws one of both for
            each training picture.
        crop_pct: Validation scales the short side to ``img_size / crop_pct`` and cuts out the centre; None is what the
            model wants, in Python 0.875.
        scale: Area of a random crop for training, least and largest share of the picture.
        ratio: Width to height of a random crop, least and largest.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of the change of brightness, contrast and saturation; not used with ``auto_augment``.
        auto_augment: timm's policy, e.g. ``rand-m9-mstd0.5-inc1``; null for none.
        re_prob: Probability of random erasing.
        re_mode: What random erasing fills with: zeros, one random colour, or random pixels.
        on_error: What a picture that cannot be read does: ``stop`` ends the run, ``skip`` leaves it out of its batch,
            with a warning, and counts it.

    Attributes:
        upright: Whether pictures are turned as their EXIF orientation says.

    Raises:
        DataError: From ``name`` and :meth:`setup`, if ``root`` does not hold such a data set; from the loaders, if a
            picture cannot be read.
    """

    upright = True

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] | None,
        batch_size: int,
        num_workers: int | None,
        seed: int,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
        interpolation: Interpolation | None,
        crop_pct: float | None,
        augmentation: Augmentation,
        on_error: Literal["stop", "skip"],
    ) -> None:
        super().__init__(img_size, batch_size, num_workers, seed)
        self.root = root
        self.mean = IMAGENET_DEFAULT_MEAN if mean is None else mean
        self.std = IMAGENET_DEFAULT_STD if std is None else std
        self.train_interpolation = interpolation or "bicubic"
        self.interpolation = "bicubic" if self.train_interpolation == "random" else self.train_interpolation
        self.crop_pct = 0.875 if crop_pct is None else crop_pct
        self.augmentation = augmentation
        self.on_error = on_error

    @cached_property
    def sources(self) -> tuple[Source | None, Source | None]:
        """The training and the validation pictures, as far as there are any.

        Raises:
            DataError: If ``root`` does not hold such a data set.
        """
        raise NotImplementedError

    def check_arguments(self) -> None:
        """Refuse arguments that cannot work.

        Raises:
            ConfigError: Naming the argument, its value and what is possible.
        """
        super().check_arguments()
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"data.crop_pct {self.crop_pct} is impossible: give a share above 0, at most 1")
        if min(self.std) <= 0:
            raise ConfigError(f"data.std {list(self.std)} is impossible: pictures are divided by it, give more than 0")
        for name in ("hflip", "re_prob"):
            if not 0 <= (value := getattr(self.augmentation, name)) <= 1:
                raise ConfigError(f"data.{name} {value} is impossible: a probability is 0 to 1")
        for name in ("scale", "ratio"):
            low, high = getattr(self.augmentation, name)
            if not 0 < low <= high:
                raise ConfigError(
                    f"data.{name} [{low}, {high}] is impossible: give two numbers above 0, the least first"
                )

    def setup(self, stage: str | None = None) -> None:
        """List the pictures; once."""
        self.check_arguments()
        train, val = self.sources
        how = {"mean": self.mean, "std": self.std}
        options: dict[str, Any] = {"upright": self.upright, "skip": self.on_error == "skip"}
        if train is not None and self.train_set is None:
            change = train_transform(self.image_hw, self.augmentation, interpolation=self.train_interpolation, **how)
            self.train_set = PictureSet(train, change, self.seed, **options)
        if val is not None and self.val_set is None:
            self.val_set = PictureSet(val, eval_transform(**self.preprocessing), **options)

    def _ready(self, data: Dataset[Any] | None, part: str) -> Dataset[Any]:
        if data is None and (self.train_set is not None or self.val_set is not None):
            missing = Path(self.root) / {"training": "train", "validation": "val"}[part]
            raise DataError(f"{missing} does not exist: put the {part} pictures there, one folder a class")
        return super()._ready(data, part)


def count(source: Source | None) -> int:
    """Number of pictures."""
    return 0 if source is None else len(source.labels)
