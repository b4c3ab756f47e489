"""What every image data set offers: its names for tables, its statistics, and loaders that repeat exactly."""

import os
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from mobilemamba.data.sampling import EpochSampler, make_generator
from mobilemamba.errors import ConfigError, DataError


class ImageDataModule(LightningDataModule):
    """Base of the data modules. A subclass gives the attributes below and fills the two sets in :meth:`setup`.

    A batch is ``(images, labels)``: images (B, 3, H, W) float32, normalised with ``mean`` and ``std``; labels (B,)
    int64. ``train_set`` is indexed by the keys of :mod:`mobilemamba.data.sampling`, ``val_set`` by plain indices.

    Args:
        img_size: Side in pixels, or (height, width).
        batch_size: Pictures in a batch, per process.
        num_workers: Processes that load; None chooses what suits the data set.
        seed: Fixes the order and the augmentation of every epoch; 0 or more.

    Attributes:
        name: Printed in tables beside every score, with the number of training and validation pictures.
        class_names: In the order of the labels.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.

    Raises:
        ConfigError: In :meth:`setup` and in the loaders, if an argument cannot work.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_set: Dataset[Any] | None
    val_set: Dataset[Any] | None

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_set = None
        self.val_set = None

    @property
    def num_classes(self) -> int:
        """Known before :meth:`setup`, so that the model can be built from it."""
        return len(self.class_names)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    def check_arguments(self) -> None:
        """Refuse arguments that cannot work, in the words of the configuration.

        Raises:
            ConfigError: Naming the argument, its value and what is possible.
        """
        if min(self.image_hw) < 1:
            raise ConfigError(f"data.img_size {self.img_size} is impossible: give 1 pixel or more, e.g. 224")
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size {self.batch_size} is impossible: give 1 or more, e.g. 64")
        if self.num_workers is not None and self.num_workers < 0:
            raise ConfigError(f"data.num_workers {self.num_workers} is impossible: give 0 or more, or null to choose")
        if self.seed < 0:
            raise ConfigError(f"data.seed {self.seed} is impossible: give 0 or more")

    def default_workers(self) -> int:
        """Loading processes if ``num_workers`` is None: the CPUs this process may use, shared by the node's ranks."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ranks_here = self.trainer.num_devices if self.trainer is not None else 1
        return min(8, cpus // ranks_here)

    def train_dataloader(self) -> DataLoader[Any]:
        """All training pictures in a new order each epoch; at most one picture is left out (see below).

        Raises:
            ConfigError: If a batch would hold a single picture: batch norm has no statistics of one picture.
        """
        data = self._ready(self.train_set, "training")
        ranks = self.trainer.world_size if self.trainer is not None else 1
        share = -(-len(cast(Sized, data)) // ranks)  # a distributed sampler pads to equal shares
        if self.batch_size == 1 or share == 1:
            raise ConfigError(
                f"data.batch_size {self.batch_size} with {share} training picture(s) per process gives batches of one, "
                "which batch norm cannot train on: use a batch size and a training set of at least 2"
            )
        # Only a last batch of one is dropped: small sets lose nothing else.
        drop_last = share % self.batch_size == 1
        sampler = EpochSampler(len(cast(Sized, data)), self.seed)
        return self._loader(data, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation pictures in their fixed order."""
        return self._loader(self._ready(self.val_set, "validation"))

    def test_dataloader(self) -> DataLoader[Any]:
        """The validation pictures: the data sets here have no third part."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        """The validation pictures."""
        return self.val_dataloader()

    def _ready(self, data: Dataset[Any] | None, part: str) -> Dataset[Any]:
        self.check_arguments()
        if data is None:
            raise DataError(f"{type(self).__name__} has no {part} pictures yet: call setup() first")
        return data

    def _loader(self, data: Dataset[Any], **options: Any) -> DataLoader[Any]:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        # A set that indexes whole batches at once gives them collated.
        collate: Callable[[Any], Any] | None = _as_it_is if hasattr(data, "__getitems__") else None
        return _OneLineErrorLoader(
            data,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            # Without its own generator a loader draws from the global stream, and so shifts the model's dropout.
            generator=make_generator(self.seed),
            **options,
        )


class _OneLineErrorLoader(DataLoader[Any]):
    """Gives back a worker's DataError as the line it was raised with, without the worker's traceback around it."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None


def _as_it_is(batch: Any) -> Any:
    return batch
