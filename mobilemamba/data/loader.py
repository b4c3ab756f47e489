"""The loader of all data sets: can resume within an epoch, raises one-line errors and reports unreadable pictures."""

import itertools
import warnings
from collections.abc import Iterator, Sized
from typing import Any, cast

from torch.utils.data import DataLoader

from mobilemamba.data.batches import Batch, Collate, Form, MarkedByKey, Unreadable
from mobilemamba.data.sampling import EpochSampler
from mobilemamba.errors import ConfigError, DataError

#: Number of pictures at the beginning of an epoch among which readable ones are looked for.
_LOOKED_AT = 64


class PictureLoader(DataLoader[Any]):
    """Yields batches ``(images, targets)`` of the given form.

    *Resuming.* :meth:`state_dict` returns the position in an epoch of
    :class:`~mobilemamba.data.sampling.EpochSampler`; Lightning stores it in checkpoints. After
    :meth:`load_state_dict`, iterating over that epoch starts at its next batch, if it is the next epoch iterated over;
    every other epoch starts at its first batch. ``len`` remains that of the whole epoch.

    *Unreadable pictures*, which the data set returns as :class:`~mobilemamba.data.batches.Unreadable`, are left out of
    their batch, recorded in :attr:`skipped`, and warned about once each. If fewer than ``least`` remain of a training
    batch, as may happen to the last and smallest one of an epoch, the first readable pictures of the epoch replace it.
    If none remains in an evaluation, one black picture that does not count does. So all processes have the same number
    of batches.

    Args:
        *args: Arguments of DataLoader.
        form: Form of the batches.
        blank_hw: Height and width of the black picture in an evaluation; None in training.
        least: Smallest number of pictures to train on: 2 for batch norm, which has no statistics of one.
        skipped: Dict in which unreadable pictures are recorded, name -> reason; loaders may share it.
        **kwargs: Arguments of DataLoader, except ``collate_fn``.

    Attributes:
        skipped: Unreadable pictures so far, name -> reason.

    Raises:
        DataError: While iterating, if a picture is unreadable and not to be skipped, or if too few pictures of a
            training batch remain and the beginning of the epoch has too few as well; a single line without the worker's
            traceback.
        ConfigError: While iterating, if the loaded state is for another number of pictures or another batch size.
    """

    def __init__(
        self,
        *args: Any,
        form: Form,
        blank_hw: tuple[int, int] | None = None,
        least: int = 2,
        skipped: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        marked = isinstance(self.dataset, MarkedByKey)
        data = self.dataset.data if isinstance(self.dataset, MarkedByKey) else self.dataset
        self.form = form
        self.collate_fn = Collate(form, whole=hasattr(data, "__getitems__"), marked=marked)
        self.blank_hw = blank_hw
        self.least = least
        self.skipped: dict[str, str] = {} if skipped is None else skipped
        self._epoch = 0
        self._handed_out = 0
        self._loaded: dict[str, int] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]  # torch names its own class
        # A generator, as Lightning requests the iterator before it sets the epoch: nothing may start before the first
        # batch is requested.
        self._handed_out = self._begin()
        try:
            for batch in super().__iter__():
                readable = self._readable(Batch(*batch).received())
                self._handed_out += 1
                yield readable
        except DataError as error:
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch, the batches yielded in it (0 after a complete one), and the sizes that define them."""
        if self._loaded is not None:
            return self._loaded
        return {
            "epoch": self._epoch,
            "batches": self._handed_out if self._handed_out < len(self) else 0,
            **self._cut(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the state's epoch, if it is the next one iterated over, start after the batches already yielded."""
        self._loaded = dict(state_dict)

    def _cut(self) -> dict[str, int]:
        """Returns the numbers that, with a number of batches, define a position in an epoch."""
        ranks, of = getattr(self.sampler, "num_replicas", 1), getattr(self.sampler, "dataset", self.dataset)
        return {"pictures": len(cast(Sized, of)), "pictures_per_step": (self.batch_size or 0) * ranks}

    def _begin(self) -> int:
        """Sets the sampler to the start of this iteration, and returns the number of batches before it."""
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
        if left and (not batch.unreadable or self.blank_hw is not None or left >= self.least):
            return batch.images, batch.targets
        if self.blank_hw is not None:
            return self.form.blank(*self.blank_hw)
        if others := self._first_readable():
            return self.form.collate(others)
        name, reason = next(iter(batch.unreadable.items()))
        raise DataError(
            f"{left} of the {left + len(batch.unreadable)} pictures of a training batch can be read, too few to train "
            f"on: repair or remove {name} ({reason}) and the others named above, or raise data.batch_size"
        )

    def _first_readable(self) -> list[Any]:
        """Returns the first ``least`` readable pictures of the epoch; none if there are fewer at its beginning."""
        keys = self.sampler.keys(self._epoch)[:_LOOKED_AT] if isinstance(self.sampler, EpochSampler) else []
        readable = (item for item in map(self.dataset.__getitem__, keys) if not isinstance(item, Unreadable))
        found = list(itertools.islice(readable, self.least))
        return found if len(found) == self.least else []
