"""Any own pictures: one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from mobilemamba.data.folders import class_folders, list_classes
from mobilemamba.data.picture_data import PictureDataModule, count
from mobilemamba.data.picture_set import FileSource
from mobilemamba.data.pictures import Augmentation
from mobilemamba.errors import ConfigError, DataError

Sample = tuple[str, int]  # the picture's path, its label


class ImageFolder(PictureDataModule):
    """Pictures in ``root/train/<class>/`` and ``root/val/<class>/``; or, without ``train``, in ``root/<class>/``.

    Without ``val`` the share ``val_fraction`` of each class is set aside for validation: always the same pictures,
    evenly spread over the sorted file names, whatever the seed. With ``val`` alone the set can be validated on, not
    trained on. The random arguments are timm's, with mild defaults for fine-tuning; :class:`ImageNet` has the paper's.
    Pictures are turned as their EXIF orientation says. The other arguments are described in :class:`PictureDataModule`.

    Args:
        val_fraction: Share of each class for validation if there is no ``val`` folder, above 0 and below 1.
    """

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
        val_fraction: float = 0.2,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Literal["bilinear", "bicubic", "random"] | None = None,
        crop_pct: float | None = None,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.3,
        auto_augment: str | None = None,
        re_prob: float = 0.0,
        re_mode: Literal["const", "rand", "pixel"] = "pixel",
        on_error: Literal["stop", "skip"] = "stop",
    ) -> None:
        augmentation = Augmentation(scale, ratio, hflip, color_jitter, auto_augment, re_prob, re_mode)
        super().__init__(
            root, img_size, batch_size, num_workers, seed, mean, std, interpolation, crop_pct, augmentation, on_error
        )
        self.val_fraction = val_fraction

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The class folders' names, sorted; read from the disk at the first use."""
        train, val = self._folders()
        folder = train if train is not None else val
        assert folder is not None  # _folders gives at least one
        return class_folders(folder)

    @cached_property
    def name(self) -> str:  # type: ignore[override]
        """The folder's name with the number of training and validation pictures."""
        train, val = self.sources
        return f"{Path(self.root).resolve().name} ({count(train):,}/{count(val):,})"

    @cached_property
    def sources(self) -> tuple[FileSource | None, FileSource | None]:
        """The training pictures, if there are any, and the validation pictures.

        Raises:
            DataError: If the folders do not hold such a data set.
        """
        train, val = self._split()
        return FileSource(train) if train else None, FileSource(val)

    def check_arguments(self) -> None:
        """Refuse arguments that cannot work.

        Raises:
            ConfigError: Naming the argument, its value and what is possible.
        """
        super().check_arguments()
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction {self.val_fraction} is impossible: give a share above 0 and below 1")

    def _folders(self) -> tuple[Path | None, Path | None]:
        """Return the folders of the training and of the validation pictures, as far as they exist."""
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"data.root {self.root} is not a folder: give one that holds train/<class>/ or <class>/")
        train, val = root / "train", root / "val"
        if not train.is_dir() and not val.is_dir():
            return root, None
        return train if train.is_dir() else None, val if val.is_dir() else None

    def _split(self) -> tuple[list[Sample], list[Sample]]:
        train_folder, val_folder = self._folders()
        labels = {name: label for label, name in enumerate(self.class_names)}
        train = list_classes(train_folder, labels, every_class=True) if train_folder is not None else []
        if val_folder is None:
            return _set_aside(train, self.val_fraction, self.class_names)
        unknown = [name for name in class_folders(val_folder) if name not in labels]
        if unknown:
            raise DataError(
                f"{val_folder / unknown[0]} is a class that {train_folder} does not have ({len(labels)} classes): "
                "rename it, remove it, or add its training pictures"
            )
        return train, list_classes(val_folder, labels, every_class=False)


def _set_aside(
    samples: list[Sample], fraction: float, class_names: tuple[str, ...]
) -> tuple[list[Sample], list[Sample]]:
    """Split into training and validation pictures, evenly spread over each class, at least one of each in both."""
    train: list[Sample] = []
    val: list[Sample] = []
    of_class: list[list[Sample]] = [[] for _ in class_names]
    for sample in samples:
        of_class[sample[1]].append(sample)
    for name, own in zip(class_names, of_class, strict=True):
        if len(own) < 2:
            raise DataError(f"class '{name}' has 1 picture, too few to set one aside: add pictures or a val/ folder")
        count = min(len(own) - 1, max(1, round(len(own) * fraction)))
        chosen = {(2 * i + 1) * len(own) // (2 * count) for i in range(count)}
        for position, sample in enumerate(own):
            (val if position in chosen else train).append(sample)
    return train, val
