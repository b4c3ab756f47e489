"""The base class of data modules for classification whose pictures are read one by one."""

from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from mobilemamba.data.base import ABOVE_0
from mobilemamba.data.classification import ImageDataModule
from mobilemamba.data.classification_transforms import Augmentation, eval_transform, train_transform
from mobilemamba.data.labelled_pictures import LabelledSet, Source
from mobilemamba.data.picture_files import PictureFiles
from mobilemamba.errors import ConfigError
from mobilemamba.text import printable

Interpolation = Literal["bilinear", "bicubic", "random"]


class Sources(NamedTuple):
    """The pictures of each part; None if it does not exist."""

    train: Source | None
    val: Source | None
    test: Source | None = None


class ClassificationPictures(PictureFiles, ImageDataModule):
    """Base class of data modules that list their pictures in :attr:`sources`, with their common arguments.

    Args:
        root: Folder of the data set.
        interpolation: Interpolation of the scaling; None for the model's own, or bicubic outside the command line.
            ``random`` draws bilinear or bicubic for each training picture.
        crop_pct: Validation scales the short side to ``img_size / crop_pct`` and crops the centre; None for the model's
            own, or 0.875 outside the command line.
        augmentation: Random changes of training pictures.
        **options: Arguments of :class:`~mobilemamba.data.picture_files.PictureFiles`.

    Raises:
        DataError: From ``name`` and :meth:`setup`, if ``root`` does not contain such a data set; from the loaders, if a
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
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.train_interpolation = interpolation or "bicubic"
        self.interpolation = "bicubic" if self.train_interpolation == "random" else self.train_interpolation
        self.crop_pct = 0.875 if crop_pct is None else crop_pct
        self.augmentation = augmentation

    @cached_property
    def sources(self) -> Sources:
        """The pictures of each part.

        Raises:
            DataError: If ``root`` does not contain such a data set.
        """
        raise NotImplementedError  # each layout of files lists its own

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # found when asked for
        """Name of the data set, see :meth:`named`."""
        return self.named([0 if source is None else len(source.labels) for source in self.sources])

    @property
    def classes_present(self) -> dict[str, int]:
        """Existing part (``train``, ``val``, ``test``) -> number of classes that have pictures in it."""
        parts = self.sources._asdict().items()
        return {part: len(np.unique(source.labels)) for part, source in parts if source is not None}

    def check_arguments(self) -> None:
        super().check_arguments()
        for name in ("scale", "ratio"):
            low, high = getattr(self.augmentation, name)
            if low > high:
                raise ConfigError(f"data.augmentation.{name} [{low}, {high}] is impossible: give the least first")

    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures once, and prints which classes are missing and which files or folders are not used."""
        self.check_arguments()
        if self.is_set_up:
            return
        parts = self.sources
        missing = [
            f"{part} has pictures of {classes} of the {self.num_classes:,} classes"
            for part, classes in self.classes_present.items()
            if classes < self.num_classes
        ]
        self.print_notes(*missing)
        how, options = self.transform_options, self.set_options
        if parts.train is not None:
            statistics = {"mean": self.mean, "std": self.std}
            interpolation = self.train_interpolation
            change = train_transform(self.image_hw, self.augmentation, interpolation=interpolation, **statistics)
            self.train_set = LabelledSet(parts.train, change, seed=self.seed, **options)
        if parts.val is not None:
            self.val_set = LabelledSet(parts.val, eval_transform(**how), **options)
        if parts.test is not None:
            self.test_set = LabelledSet(parts.test, eval_transform(**how), **options)

    def missing(self, part: str) -> str:
        folder = Path(self.root) / {"training": "train", "validation": "val"}[part]
        return f"{printable(folder)} does not exist: put the {part} pictures there, one folder a class"
