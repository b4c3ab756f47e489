"""The loader of all data sets: goes on in mid-epoch, reports in one line, and tells of the pictures it left out."""

import warnings
from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import DataLoader

from mobilemamba.data.batches import Batch, Collate, Form, MarkedByKey
from mobilemamba.data.sampling import EpochSampler
from mobilemamba.errors import ConfigError, DataError


class PictureLoader(DataLoader[Any]):
    """Yields batches ``(images, targets)``, as their form says.

    *Resuming.* :meth:`state_dict` is the place in an epoch of :class:`~mobilemamba.data.sampling.EpochSampler`, which
    Lightning keeps in checkpoints. After :meth:`load_state_dict`, that epoch goes on with the next batch, if it is the
    next one to be iterated over; every other epoch starts at its first batch. ``len`` stays the whole epoch's.

    *Unreadable pictures* that the data set gives as :class:`~mobilemamba.data.batches.Unreadable` are left out of their
    batch, noted in :attr:`skipped`, and each is warned of once. In training at least two pictures must be left, as
    batch norm has no statistics of one. In an evaluation where none is left, one black picture that does not count
    takes their place: the number of batches stays the same in all processes.

    Args:
        *args: As for DataLoader.
        form: Of the batches.
        blank_hw: In an evaluation, height and width of the black picture; None in training.
        skipped: The dict to note unreadable pictures in, name to reason; loaders may share one.
        **kwargs: As for DataLoader, but for ``collate_fn``.

    Attributes:
        skipped: The pictures that could not be read so far, name to reason.

    Raises:
        DataError: While iterating, if a picture cannot be read and is not to be skipped, or too few of a training batch
            are left; without the worker's traceback around the line.
        ConfigError: While iterating, if the state that was loaded is of another number of pictures or size of batch.
    """

    def __init__(
        self,
        *args: Any,
        form: Form,
        blank_hw: tuple[int, int] | None = None,
        skipped: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        marked = isinstance(self.dataset, MarkedByKey)
        data = self.dataset.data if isinstance(self.dataset, MarkedByKey) else self.dataset
        self.form = form
        self.collate_fn = Collate(form, whole=hasattr(data, "__getitems__"), marked=marked)
        self.blank_hw = blank_hw
        self.skipped: dict[str, str] = {} if skipped is None else skipped
        self._epoch = 0
        self._handed_out = 0
        self._loaded: dict[str, int] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]  # torch names its own class
        # A generator: Lightning asks for the iterator before it sets the epoch, so nothing may start before the first
        # batch is asked for.
        self._handed_out = self._begin()
        try:
            for batch in super().__iter__():
                readable = self._readable(Batch(*batch).received())
                self._handed_out += 1
                yield readable
        except DataError as error:
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None

    def state_dict(self) -> dict[str, int]:
        """The epoch, the batches handed out in it (0 after a complete one), and what they were cut from."""
        if self._loaded is not None:
            return self._loaded
        return {
            "epoch": self._epoch,
            "batches": self._handed_out if self._handed_out < len(self) else 0,
            **self._cut(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the state's epoch, if it is the next one iterated over, start after the batches handed out before."""
        self._loaded = dict(state_dict)

    def _cut(self) -> dict[str, int]:
        """What a number of batches has to be known with, to be a place in an epoch."""
        ranks = getattr(self.sampler, "num_replicas", 1)
        return {"pictures": len(cast(Sized, self.dataset)), "pictures_per_step": (self.batch_size or 0) * ranks}

    def _begin(self) -> int:
        """Place the sampler where this iteration starts, and return the number of batches before it."""
        loaded, self._loaded = self._loaded, None
        if not isinstance(self.sampler, EpochSampler):  # an evaluation, or Lightning's overfit_batches
            return 0
        self._epoch = self.sampler.epoch
        done = loaded["batches"] if loaded is not None and loaded["epoch"] == self._epoch else 0
        here = self._cut()
        if loaded and done and any(loaded[key] != here[key] for key in here):
            raise ConfigError(
                f"the checkpoint is from the middle of epoch {self._epoch}, of {loaded['pictures']} pictures in steps "
                f"of {loaded['pictures_per_step']} over all processes, but here are {here['pictures']} in steps of "
                f"{here['pictures_per_step']}: use the same data and data.batch_size, or a checkpoint of an epoch's end"
            )
        self.sampler.start = done * (self.batch_size or 0)
        return done

    def _readable(self, batch: Batch) -> tuple[Any, Any]:
        for name, reason in batch.unreadable.items():
            if name not in self.skipped:
                self.skipped[name] = reason
                warnings.warn(f"{name} cannot be read ({reason}) and is skipped", stacklevel=3)
        left = 0 if batch.images is None else len(batch.images)
        if left and (not batch.unreadable or self.blank_hw is not None or left > 1):
            return batch.images, batch.targets
        if self.blank_hw is not None:
            return self.form.blank(*self.blank_hw)
        name, reason = next(iter(batch.unreadable.items()))
        raise DataError(
            f"{left} of the {left + len(batch.unreadable)} pictures of a training batch can be read, too few to train "
            f"on: repair or remove {name} ({reason}) and the others named above, or raise data.batch_size"
        )
