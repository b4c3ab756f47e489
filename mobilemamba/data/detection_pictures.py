"""The base class of data modules for detection whose pictures are files."""

from functools import cached_property
from math import inf
from typing import Any, ClassVar, cast

import numpy as np

from mobilemamba.data.detection import DetectionDataModule
from mobilemamba.data.detection_transforms import DetectionAugmentation, Resize, eval_transform, train_transform
from mobilemamba.data.layout import PART_NAMES, spread_share
from mobilemamba.data.objects import Objects, ObjectSet
from mobilemamba.data.picture_files import LIMITS_OF_CHANGES, PictureFiles
from mobilemamba.data.sampling import AspectSampler, EpochSampler
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.text import printable

_LEAST_SIDE = 32  # smallest side of a training picture


class DetectionPictures(PictureFiles, DetectionDataModule):
    """Base class of data modules with files of pictures and boxes; a subclass lists them in ``parts``.

    Pictures without objects or with a side under 32 pixels are not used for training. If pictures keep their aspect
    ratio, each training batch has only wide or only tall ones.

    Args:
        root: Folder of the data set.
        img_size: With ``resize`` ``fit``, the limits of the shorter and the longer side, or only that of the shorter
            (the longer's is then 1333/800 of it); None for 800. With ``stretch``, the side or (height, width); None for
            320.
        batch_size: Training pictures per batch and process; with ``stretch`` also those of an evaluation.
        resize: ``fit``: pictures keep their aspect ratio, are padded in a training batch to multiples of 32, and are
            evaluated one by one; ``stretch``: all are scaled to exactly ``img_size``; None for the setting of the
            weights, or else ``fit``.
        repeats: How often an epoch goes through the training pictures, changed differently each time.
        val_fraction: Fraction of the training pictures used for validation if there is no validation part, above 0 and
            below 1; always the same pictures, evenly spaced.
        augmentation: Random changes of training pictures.
        **options: Arguments of :class:`~mobilemamba.data.picture_files.PictureFiles` and of
            :class:`~mobilemamba.data.detection.DetectionDataModule`.

    Raises:
        DataError: From ``name`` and :meth:`setup`, if ``root`` does not contain such a data set; from the loaders, if a
            picture cannot be used.
    """

    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **PictureFiles.LIMITS,
        **LIMITS_OF_CHANGES,
        "repeats": (1, inf, "1 or more, e.g. 5"),
        "augmentation.sides": (1, inf, "lengths in pixels, 1 or more"),
        "augmentation.expand": (0, 1, "a probability, 0 to 1"),
        "augmentation.swap": (0, 1, "a probability, 0 to 1"),
    }

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        resize: Resize | None = None,
        repeats: int = 1,
        val_fraction: float = 0.2,
        augmentation: DetectionAugmentation = DetectionAugmentation(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        resize = resize or "fit"
        usual = {"fit": 800, "stretch": 320}[resize]
        super().__init__(root, img_size=usual if img_size is None else img_size, batch_size=batch_size, **options)
        self.repeats = repeats
        self.val_fraction = val_fraction
        self.resize = resize
        self.augmentation = augmentation

    @cached_property
    def parts(self) -> dict[str, Objects]:
        """The pictures of each part that exists: ``train``, ``val``, ``test``.

        Raises:
            DataError: If ``root`` does not contain such a data set.
        """
        raise NotImplementedError  # each layout of files reads its own

    @cached_property
    def used(self) -> dict[str, Objects]:
        """The used pictures: ``parts`` without unsuitable training pictures; a missing validation part is split off."""
        found = dict(self.parts)
        if "train" in found and "val" not in found:
            chosen = spread_share(len(found["train"]), self.val_fraction)
            apart = np.isin(np.arange(len(found["train"])), list(chosen))
            found["val"] = found["train"].taken(np.flatnonzero(apart))
            found["train"] = found["train"].taken(np.flatnonzero(~apart))
        if "train" in found:
            objects = found["train"]
            fit = (np.diff(objects.starts) > 0) & (objects.sizes.min(1) >= _LEAST_SIDE)
            if not fit.any():
                raise DataError(f"{printable(self.root)} has no training pictures with boxes: annotate some")
            if not fit.all():
                self.notes.append(
                    f"{int((~fit).sum()):,} of {len(fit):,} training pictures are not used: without objects, or with a "
                    f"side under {_LEAST_SIDE} pixels"
                )
            found["train"] = objects.taken(np.flatnonzero(fit))
        return found

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # found when asked for
        """Name of the data set, see :meth:`named`."""
        return self.named([len(self.used.get(part, ())) for part in PART_NAMES])

    def check_arguments(self) -> None:
        super().check_arguments()
        if self.augmentation.sides and self.resize == "stretch":
            raise ConfigError(
                f"data.augmentation.sides {list(self.augmentation.sides)} is for pictures that keep their shape: give "
                "data.resize=fit, or leave it out"
            )

    def setup(self, stage: str | None = None) -> None:
        """Reads the annotations once, and prints which are not used."""
        self.check_arguments()
        if self.is_set_up:
            return
        used = self.used
        self.print_notes()
        how, options = self.transform_options, self.set_options
        if "train" in used:
            change = train_transform(augmentation=self.augmentation, **how)
            self.train_set = ObjectSet(used["train"], change, seed=self.seed, **options)
        if used.get("val"):  # a single picture is for training
            self.val_set = ObjectSet(used["val"], eval_transform(**how), **options)
        if "test" in used:
            self.test_set = ObjectSet(used["test"], eval_transform(**how), **options)

    def train_sampler(self) -> EpochSampler:
        data = cast(ObjectSet, self._ready(self.train_set, "training"))
        if self.resize == "stretch":
            return EpochSampler(self.repeats * len(data), self.seed, *self._place)
        height_N, width_N = data.objects.sizes.T
        wide_N = np.tile(width_N >= height_N, self.repeats)
        return AspectSampler(wide_N, self.batch_size, self.seed, *self._place)

    def missing(self, part: str) -> str:
        return f"{printable(self.root)} has no {part} pictures: add them with their annotations"
