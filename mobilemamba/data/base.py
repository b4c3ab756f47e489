"""What every image data set offers: its names for tables, its statistics, and loaders that repeat exactly."""

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
from mobilemamba.data.sampling import EpochSampler, EvaluationSampler, make_generator
from mobilemamba.errors import ConfigError, DataError

#: The least number above 0, and the greatest below 1.
ABOVE_0, BELOW_1 = nextafter(0, 1), nextafter(1, 0)


class DataModule(LightningDataModule):
    """Base of the data modules. A subclass gives the attributes below and fills the two sets in :meth:`setup`.

    A batch is ``(images, targets)``, images normalised with ``mean`` and ``std``. ``train_set`` is indexed by the keys
    of :mod:`mobilemamba.data.sampling`, ``val_set`` by plain indices. Both may offer ``name(index)``, what messages
    call a picture.

    The loaders hand each process its share of the pictures. In an evaluation repeats make the shares equal; they are
    known by their keys, and ``form`` says how a target shows that it does not count.

    Args:
        img_size: Side in pixels, or (height, width); None is what the model wants, in Python 224.
        batch_size: Pictures in a batch, per process.
        num_workers: Processes that load; None takes one per CPU, 8 at most.
        seed: Fixes the order and the augmentation of every epoch; 0 or more.

    Attributes:
        name: Printed in tables beside every score, with the number of training and validation pictures.
        class_names: In the order of the labels.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.
        upright: Whether pictures are turned as their EXIF orientation says.
        form: How pictures and targets are batched.
        single_pictures: Whether a training can have batches of one picture, as networks can that norm no picture's
            average.

    Raises:
        ConfigError: In :meth:`setup` and in the loaders, if an argument cannot work.
    """

    #: Least and greatest value of the arguments that are numbers, and what to give, in words.
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        "img_size": (1, inf, "1 pixel or more, e.g. 224"),
        "batch_size": (1, inf, "1 or more, e.g. 64"),
        "num_workers": (0, inf, "0 or more, or null to choose"),
        "seed": (0, inf, "0 or more"),
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.img_size = 224 if img_size is None else img_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_set = None
        self.val_set = None
        self.test_set = None
        self._skipped: dict[str, str] = {}

    @property
    def num_classes(self) -> int:
        """Known before :meth:`setup`, so that the model can be built from it."""
        return len(self.class_names)

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def evaluation_batch_size(self) -> int:
        """Pictures in a batch of validation and test, per process."""
        return self.batch_size

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How validation pictures are prepared: img_size (h, w), mean, std, upright, and what a subclass adds."""
        return {"img_size": self.image_hw, "mean": self.mean, "std": self.std, "upright": self.upright}

    @property
    def skipped(self) -> dict[str, str]:
        """The pictures that this process could not read and left out so far: name to reason."""
        return self._skipped

    def check_arguments(self) -> None:
        """Refuse arguments that cannot work, in the words of the configuration.

        Raises:
            ConfigError: Naming the argument, its value and what is possible.
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
        """Loading processes if ``num_workers`` is None: the CPUs this process may use, shared by the node's ranks."""
        cpus = usable_cpus()
        ranks_here = self.trainer.num_devices if self.trainer is not None else 1
        return min(8, cpus // ranks_here)

    def train_dataloader(self) -> PictureLoader:
        """All training pictures in a new order each epoch; at most one picture per process is left out (see below).

        Raises:
            ConfigError: If every batch would hold a single picture, and ``single_pictures`` does not allow that: batch
                norm has no statistics of one number a channel.
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
        # Only a last batch of one is dropped: small sets lose nothing else.
        return self._loader(data, sampler=sampler, drop_last=share % self.batch_size == 1 and not alone)

    def val_dataloader(self) -> PictureLoader:
        """All validation pictures in their fixed order."""
        return self._evaluation_loader(self._ready(self.val_set, "validation"))

    def test_dataloader(self) -> PictureLoader:
        """All test pictures in their fixed order; the validation pictures of a data set that has no third part."""
        return self.val_dataloader() if self.test_set is None else self._evaluation_loader(self.test_set)

    def predict_dataloader(self) -> PictureLoader:
        return self.val_dataloader()

    def train_sampler(self) -> EpochSampler:
        return EpochSampler(len(cast(Sized, self._ready(self.train_set, "training"))), self.seed, *self._place)

    def describe_batch(self, epoch: int, batch_idx: int) -> list[str]:
        """Names of the pictures in batch ``batch_idx`` (from 0) of this process in epoch ``epoch``, for messages."""
        data: Any = self._ready(self.train_set, "training")
        loader = getattr(self.trainer, "train_dataloader", None)
        # Lightning's overfit_batches puts another sampler in the place of ours.
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
            # Without its own generator a loader draws from the global stream, and so shifts the model's dropout.
            generator=make_generator(self.seed),
            form=self.form,
            skipped=self._skipped,
            **options,
        )


def data_of(trainer: Trainer) -> DataModule | None:
    """The data module that a trainer was given, if it is one of these."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by its connector
    return data if isinstance(data, DataModule) else None
