"""What data modules whose pictures are read one by one have in common: preparation, augmentation, unreadable ones."""

from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from mobilemamba.data.base import ABOVE_0
from mobilemamba.data.classification import ImageDataModule
from mobilemamba.data.picture_files import PictureFiles
from mobilemamba.data.picture_set import PictureSet, Source
from mobilemamba.data.pictures import Augmentation, eval_transform, train_transform
from mobilemamba.errors import ConfigError
from mobilemamba.text import printable

Interpolation = Literal["bilinear", "bicubic", "random"]


class Sources(NamedTuple):
    """The pictures of each part, as far as there are any."""

    train: Source | None
    val: Source | None
    test: Source | None = None


class PictureDataModule(PictureFiles, ImageDataModule):
    """Base of data modules that list their pictures in :attr:`sources`.

    Here stand the arguments that they share.

    Args:
        root: The folder.
        mean: Per channel, of pictures in 0..1; None is what the model wants, in Python ImageNet's.
        std: Per channel, of pictures in 0..1; None is what the model wants, in Python ImageNet's.
        interpolation: Of the scaling; None is what the model wants, in Python bicubic. ``random`` draws one of both for
            each training picture.
        crop_pct: Validation scales the short side to ``img_size / crop_pct`` and cuts out the centre; None is what the
            model wants, in Python 0.875.
        augmentation: The random changes of training pictures.
        on_error: What a picture that cannot be read does: ``stop`` ends the run, ``skip`` leaves it out of its batch,
            with a warning, and counts it.
        upright: Whether pictures are turned as their EXIF orientation says; None is what the weights want, or else
            what suits the data set.
        **options: Of :class:`~mobilemamba.data.base.DataModule`.

    Attributes:
        notes: What is said at the start of the pictures and folders that are not used, a line each.

    Raises:
        DataError: From ``name`` and :meth:`setup`, if ``root`` does not hold such a data set; from the loaders, if a
            picture cannot be read.
    """

    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **PictureFiles.LIMITS,
        "crop_pct": (ABOVE_0, 1, "a share above 0, at most 1"),
        "augmentation.re_prob": (0, 1, "a probability, 0 to 1"),
        "augmentation.color_jitter": (0, inf, "0 or more"),
        "augmentation.scale": (ABOVE_0, inf, "two numbers above 0, the least first"),
        "augmentation.ratio": (ABOVE_0, inf, "two numbers above 0, the least first"),
    }

    def __init__(
        self,
        root: str,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - read only
        on_error: Literal["stop", "skip"] = "stop",
        upright: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.take(root, mean, std, on_error, upright)
        self.train_interpolation = interpolation or "bicubic"
        self.interpolation = "bicubic" if self.train_interpolation == "random" else self.train_interpolation
        self.crop_pct = 0.875 if crop_pct is None else crop_pct
        self.augmentation = augmentation

    @cached_property
    def sources(self) -> Sources:
        """The pictures of each part.

        Raises:
            DataError: If ``root`` does not hold such a data set.
        """
        raise NotImplementedError

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # found when asked for
        """See :meth:`named`."""
        return self.named([0 if source is None else len(source.labels) for source in self.sources])

    @property
    def classes_present(self) -> dict[str, int]:
        """Of how many classes there are pictures in each part that has some: ``train``, ``val``, ``test``."""
        parts = self.sources._asdict().items()
        return {part: len(np.unique(source.labels)) for part, source in parts if source is not None}

    def check_arguments(self) -> None:
        super().check_arguments()
        for name in ("scale", "ratio"):
            low, high = getattr(self.augmentation, name)
            if low > high:
                raise ConfigError(f"data.augmentation.{name} [{low}, {high}] is impossible: give the least first")

    def setup(self, stage: str | None = None) -> None:
        """List the pictures; once. Say so if classes are missing, or files or folders are not used."""
        self.check_arguments()
        if self.is_set_up:
            return
        parts = self.sources
        missing = [
            f"{part} has pictures of {classes} of the {self.num_classes:,} classes"
            for part, classes in self.classes_present.items()
            if classes < self.num_classes
        ]
        how, options = self.start(*missing)
        if parts.train is not None:
            statistics = {"mean": self.mean, "std": self.std}
            interpolation = self.train_interpolation
            change = train_transform(self.image_hw, self.augmentation, interpolation=interpolation, **statistics)
            self.train_set = PictureSet(parts.train, change, self.seed, **options)
        if parts.val is not None:
            self.val_set = PictureSet(parts.val, eval_transform(**how), **options)
        if parts.test is not None:
            self.test_set = PictureSet(parts.test, eval_transform(**how), **options)

    def missing(self, part: str) -> str:
        folder = Path(self.root) / {"training": "train", "validation": "val"}[part]
        return f"{printable(folder)} does not exist: put the {part} pictures there, one folder a class"
