"""The base class of all data modules: names for tables, normalisation statistics, and reproducible loaders."""

from collections.abc import Sized
from math import inf, isfinite, nextafter, prod
from operator import attrgetter
from typing import Any, ClassVar, cast

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mobilemamba.cpus import usable_cpus
from mobilemamba.data.batches import Form, MarkedByKey
from mobilemamba.data.loader import PictureLoader
from mobilemamba.data.pictures import MAX_PIXELS
from mobilemamba.data.sampling import EpochSampler, EvaluationSampler, global_seed, make_generator
from mobilemamba.errors import ConfigError, DataError

#: The smallest float above 0, and the largest below 1.
ABOVE_0, BELOW_1 = nextafter(0, 1), nextafter(1, 0)


class DataModule(LightningDataModule):
    """Base class of data modules; a subclass sets the attributes below and fills the data sets in :meth:`setup`.

    A batch is ``(images, targets)``, with images normalised by ``mean`` and ``std``. ``train_set`` is indexed by the
    keys of :mod:`mobilemamba.data.sampling`, ``val_set`` by plain indices. Both may have a method ``name(index)`` that
    returns a picture's name for messages.

    The loaders give each process its share of the pictures. In evaluations, repeated pictures make the shares equal;
    their keys identify them, and ``form`` marks their targets as not counted.

    Args:
        img_size: Side in pixels, or (height, width); None for the model's own size, or 224 outside the command line.
        batch_size: Pictures per batch and process.
        num_workers: Number of loading processes; None for one per CPU, at most 8.
        seed: Determines the order and the augmentation of every epoch, 0 or more; None for that of ``seed_everything``.

    Attributes:
        name: Name in tables beside every score, with the numbers of training and validation pictures.
        class_names: Names of the classes, in the order of the labels.
        mean: Mean per channel, of pictures in 0..1.
        std: Standard deviation per channel, of pictures in 0..1.
        upright: Whether to rotate pictures by their EXIF orientation.
        form: How pictures and targets are batched.
        single_pictures: Whether training batches may have one picture, as is possible for networks that never
            normalise pooled features over the batch.
        skipped: Unreadable pictures that this process has left out so far, name -> reason.

    Raises:
        ConfigError: In :meth:`setup` and in the loaders, if an argument is invalid.
    """

    #: Smallest and largest allowed value of each numeric argument, and a description of the allowed values.
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        "img_size": (1, inf, "1 pixel or more, e.g. 224"),
        "batch_size": (1, inf, "1 or more, e.g. 64"),
        "num_workers": (0, inf, "0 or more, or null to choose"),
        "seed": (0, inf, "0 or more, or null for that of seed_everything"),
    }

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    upright: bool = True
    form: Form
    single_pictures: ClassVar[bool] = False
    train_set: Dataset[Any] | None
    val_set: Dataset[Any] | None
    test_set: Dataset[Any] | None

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.img_size = 224 if img_size is None else img_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = (global_seed() or 0) if seed is None else seed
        self.train_set = None
        self.val_set = None
        self.test_set = None
        self.skipped: dict[str, str] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, known before :meth:`setup`, so that the model can be built from it."""
        return len(self.class_names)

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def evaluation_batch_size(self) -> int:
        """Pictures per batch and process in validation and test."""
        return self.batch_size

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of validation pictures: img_size (h, w), mean, std, upright, and what a subclass adds."""
        return {"img_size": self.image_hw, "mean": self.mean, "std": self.std, "upright": self.upright}

    def check_arguments(self) -> None:
        """Checks the values of the arguments.

        Raises:
            ConfigError: If a value is invalid; names the argument, its value and the allowed values.
        """
        for name, (low, high, possible) in self.LIMITS.items():
            value = attrgetter(name)(self)
            numbers = [value] if value is None or isinstance(value, int | float) else list(value)
            if not all(number is None or (low <= number <= high and isfinite(number)) for number in numbers):
                shown = numbers[0] if numbers == [value] else numbers
                raise ConfigError(f"data.{name} {shown} is impossible: give {possible}")
        if prod(self.image_hw) > MAX_PIXELS:
            raise ConfigError(
                f"data.img_size {self.img_size} is impossible: pictures have {MAX_PIXELS:,} pixels at most, e.g. 224"
            )

    def default_workers(self) -> int:
        """Returns the number of workers if ``num_workers`` is None: the usable CPUs divided by the node's ranks."""
        cpus = usable_cpus()
        ranks_here = self.trainer.num_devices if self.trainer is not None else 1
        return min(8, cpus // ranks_here)

    def train_dataloader(self) -> PictureLoader:
        """Returns a loader of all training pictures in a new order each epoch.

        A last batch of one picture is dropped, unless all batches are of one picture.

        Raises:
            ConfigError: If every batch would have a single picture and ``single_pictures`` does not allow this, as
                batch norm needs more than one value per channel.
        """
        data = self._ready(self.train_set, "training")
        sampler = self.train_sampler()
        share = len(sampler)
        alone = self.batch_size == 1 or share == 1
        if alone and not self.single_pictures:
            raise ConfigError(
                f"data.batch_size {self.batch_size} with {share} training picture(s) per process gives batches of one, "
                "which batch norm cannot train on: use a batch size and a training set of at least 2"
            )
        # Only a last batch of one picture is dropped, so that small sets lose nothing else.
        drop_last = share % self.batch_size == 1 and not alone
        return self._loader(data, sampler=sampler, drop_last=drop_last, least=1 if alone else 2)

    def val_dataloader(self) -> PictureLoader:
        """Returns a loader of all validation pictures in a fixed order."""
        return self._evaluation_loader(self._ready(self.val_set, "validation"))

    def test_dataloader(self) -> PictureLoader:
        """Returns a loader of all test pictures in a fixed order; validation pictures if there is no test set."""
        return self.val_dataloader() if self.test_set is None else self._evaluation_loader(self.test_set)

    def predict_dataloader(self) -> PictureLoader:
        return self.val_dataloader()

    def train_sampler(self) -> EpochSampler:
        return EpochSampler(len(cast(Sized, self._ready(self.train_set, "training"))), self.seed, *self._place)

    def describe_batch(self, epoch: int, batch_idx: int) -> list[str]:
        """Returns the names of the pictures in a batch (from 0) of this process in an epoch, for messages."""
        data: Any = self._ready(self.train_set, "training")
        loader = getattr(self.trainer, "train_dataloader", None)
        # Lightning's overfit_batches replaces our sampler by another one.
        sampler = loader.sampler if isinstance(loader, DataLoader) else self.train_sampler()
        keys = sampler.keys(epoch) if isinstance(sampler, EpochSampler) else list(sampler)
        batch = keys[batch_idx * self.batch_size : (batch_idx + 1) * self.batch_size]
        name = getattr(data, "name", "picture {}".format)
        return [name(key % len(data)) for key in batch]

    @property
    def _place(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _ready(self, data: Dataset[Any] | None, part: str) -> Dataset[Any]:
        self.check_arguments()
        if data is None:
            raise DataError(f"{type(self).__name__} has no {part} pictures yet: call setup() first")
        return data

    def _evaluation_loader(self, data: Dataset[Any]) -> PictureLoader:
        sampler = EvaluationSampler(len(cast(Sized, data)), *self._place)
        size = self.evaluation_batch_size
        return self._loader(MarkedByKey(data), batch_size=size, sampler=sampler, blank_hw=self.image_hw)

    def _loader(self, data: Dataset[Any], **options: Any) -> PictureLoader:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        return PictureLoader(
            data,
            batch_size=options.pop("batch_size", self.batch_size),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without its own generator, a loader draws from the global one and thus changes the model's dropout.
            generator=make_generator(self.seed),
            form=self.form,
            skipped=self.skipped,
            **options,
        )


def data_of(trainer: Trainer) -> DataModule | None:
    """Returns the trainer's data module if it is a :class:`DataModule`, otherwise None."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by its connector
    return data if isinstance(data, DataModule) else None
