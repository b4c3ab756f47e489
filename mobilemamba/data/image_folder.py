"""Any own pictures: one folder per class."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mobilemamba.data.base import ImageDataModule
from mobilemamba.data.sampling import seeded
from mobilemamba.errors import ConfigError, DataError

Sample = tuple[str, int]  # the picture's path, its label


class ImageFolder(ImageDataModule):
    """Pictures in ``root/train/<class>/`` and ``root/val/<class>/``; or, without ``train``, in ``root/<class>/``.

    Without ``val`` the share ``val_fraction`` of each class is set aside for validation: always the same pictures,
    evenly spread over the sorted file names, whatever the seed. With ``val`` alone the set can be validated on, not
    trained on. The random arguments are timm's, with mild defaults for fine-tuning; the ImageNet recipe sets its own.

    Args:
        root: The folder.
        img_size: Side in pixels, or (height, width).
        batch_size: Pictures in a batch, per process.
        num_workers: Processes that load; None takes one per CPU, 8 at most.
        seed: Fixes the order and the augmentation of every epoch; 0 or more.
        val_fraction: Share of each class for validation if there is no ``val`` folder, above 0 and below 1.
        mean: Per channel, of pictures in 0..1; give what the pretrained weights were trained with.
        std: Per channel, of pictures in 0..1.
        interpolation: Of the scaling.
        crop_pct: Validation scales the short side to ``img_size / crop_pct`` and cuts out the centre.
        scale: Area of a random crop for training, least and largest share of the picture.
        ratio: Width to height of a random crop, least and largest.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of the change of brightness, contrast and saturation; not used with ``auto_augment``.
        auto_augment: timm's policy, e.g. ``rand-m9-mstd0.5-inc1``.
        re_prob: Probability of random erasing.
        re_mode: What random erasing fills with: zeros, one random colour, or random pixels.

    Raises:
        DataError: From ``class_names`` and :meth:`setup`, if the folders do not hold such a data set; from the loaders,
            if a picture cannot be read.
    """

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
        val_fraction: float = 0.2,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic",
        crop_pct: float = 0.9,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.3,
        auto_augment: str | None = None,
        re_prob: float = 0.0,
        re_mode: Literal["const", "rand", "pixel"] = "pixel",
    ) -> None:
        super().__init__(img_size, batch_size, num_workers, seed)
        self.root = root
        self.val_fraction = val_fraction
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.crop_pct = crop_pct
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip
        self.color_jitter = color_jitter
        self.auto_augment = auto_augment
        self.re_prob = re_prob
        self.re_mode = re_mode

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The class folders' names, sorted; read from the disk at the first use."""
        train, val = self._folders()
        return _class_folders(train if train is not None else val)

    @cached_property
    def name(self) -> str:  # type: ignore[override]
        """The folder's name with the number of training and validation pictures."""
        train, val = self._split
        return f"{Path(self.root).resolve().name} ({len(train):,}/{len(val):,})"

    def check_arguments(self) -> None:
        """Refuse arguments that cannot work.

        Raises:
            ConfigError: Naming the argument, its value and what is possible.
        """
        super().check_arguments()
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction {self.val_fraction} is impossible: give a share above 0 and below 1")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"data.crop_pct {self.crop_pct} is impossible: give a share above 0, at most 1")

    def setup(self, stage: str | None = None) -> None:
        """List the pictures; once."""
        self.check_arguments()
        train, val = self._split
        if train and self.train_set is None:
            self.train_set = _Files(train, self._transform(is_training=True), self.seed)
        if self.val_set is None:
            self.val_set = _Files(val, self._transform(is_training=False))

    def _ready(self, data: Dataset[Any] | None, part: str) -> Dataset[Any]:
        if part == "training" and self.val_set is not None and data is None:
            missing = Path(self.root) / "train"
            raise DataError(f"{missing} does not exist: put the training pictures there, one folder a class")
        return super()._ready(data, part)

    def _transform(self, *, is_training: bool) -> Callable[[Image.Image], Tensor]:
        return create_transform(
            self.image_hw,
            is_training=is_training,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            interpolation=self.interpolation if is_training or self.interpolation != "random" else "bicubic",
            mean=self.mean,
            std=self.std,
            re_prob=self.re_prob,
            re_mode=self.re_mode,
            crop_pct=self.crop_pct,
        )

    def _folders(self) -> tuple[Path | None, Path | None]:
        """Return the folders of the training and of the validation pictures, as far as they exist."""
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"data.root {self.root} is not a folder: give one that holds train/<class>/ or <class>/")
        train, val = root / "train", root / "val"
        if not train.is_dir() and not val.is_dir():
            return root, None
        return train if train.is_dir() else None, val if val.is_dir() else None

    @cached_property
    def _split(self) -> tuple[list[Sample], list[Sample]]:
        train_folder, val_folder = self._folders()
        labels = {name: label for label, name in enumerate(self.class_names)}
        train = _list_pictures(train_folder, labels, every_class=True) if train_folder is not None else []
        if val_folder is None:
            return _set_aside(train, self.val_fraction, self.class_names)
        unknown = [name for name in _class_folders(val_folder) if name not in labels]
        if unknown:
            raise DataError(
                f"{val_folder / unknown[0]} is a class that {train_folder} does not have ({len(labels)} classes): "
                "rename it, remove it, or add its training pictures"
            )
        return train, _list_pictures(val_folder, labels, every_class=False)


def _class_folders(folder: Path | None) -> tuple[str, ...]:
    assert folder is not None  # _folders gives at least one
    # Tools leave hidden folders behind (.ipynb_checkpoints, .thumbnails); they are no classes.
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise DataError(f"{folder} has no class folders: put the pictures of each class into {folder}/<class>/")
    return names


def _list_pictures(folder: Path, labels: dict[str, int], *, every_class: bool) -> list[Sample]:
    present = {name: label for name, label in labels.items() if (folder / name).is_dir()}
    samples: list[Sample] = make_dataset(str(folder), present, IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for name, label in labels.items() if label not in filled]
    if empty and (every_class or not samples):
        kinds = " ".join(IMG_EXTENSIONS)
        raise DataError(f"{folder / empty[0]} holds no pictures ({kinds}): add some or remove the class")
    return samples


def _set_aside(
    samples: list[Sample], fraction: float, class_names: tuple[str, ...]
) -> tuple[list[Sample], list[Sample]]:
    """Split into training and validation pictures, evenly spread over each class, at least one of each in both."""
    train: list[Sample] = []
    val: list[Sample] = []
    for label, name in enumerate(class_names):
        own = [sample for sample in samples if sample[1] == label]
        if len(own) < 2:
            raise DataError(f"class '{name}' has 1 picture, too few to set one aside: add pictures or a val/ folder")
        count = min(len(own) - 1, max(1, round(len(own) * fraction)))
        chosen = {(2 * i + 1) * len(own) // (2 * count) for i in range(count)}
        for position, sample in enumerate(own):
            (val if position in chosen else train).append(sample)
    return train, val


class _Files(Dataset[tuple[Tensor, int]]):
    """Pictures on the disk, transformed with randomness that is a function of (seed, epoch, picture)."""

    def __init__(self, samples: list[Sample], transform: Callable[[Image.Image], Tensor], seed: int = 0) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        epoch, index = divmod(key, len(self))
        path, label = self.samples[index]
        picture = _read(path)
        with seeded(self.seed, epoch, index):
            return self.transform(picture), label


def _read(path: str) -> Image.Image:
    """Return the picture at ``path`` in RGB.

    Raises:
        DataError: If it cannot be read to its end.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as a picture ({reason}): repair it or remove it") from error
