"""From pictures to a batch: which of them are left out, and which do not count."""

from collections.abc import Sized
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mobilemamba.data.sampling import IGNORED


class Unreadable(NamedTuple):
    """What a data set gives in the place of a picture that cannot be read and is to be skipped."""

    name: str
    reason: str


class Batch(NamedTuple):
    """What a worker hands over. Without any readable picture, ``images`` and ``labels`` are None."""

    images: Tensor | None
    labels: Tensor | None
    unreadable: dict[str, str]  # name -> reason


def collate(items: list[Any]) -> Batch:
    """Stack pictures (3, H, W) and labels, without those that are :class:`Unreadable`."""
    readable = [item for item in items if not isinstance(item, Unreadable)]
    images, labels = default_collate(readable) if readable else (None, None)
    return Batch(images, labels, dict(item for item in items if isinstance(item, Unreadable)))


def as_batch(parts: tuple[Tensor, Tensor]) -> Batch:
    """For a data set whose ``__getitems__`` gives pictures (B, 3, H, W) and labels (B,) that are stacked already."""
    return Batch(*parts, {})


class MarkRepeats(Dataset[Any]):
    """A data set by the keys of :class:`~mobilemamba.data.sampling.EvaluationSampler`: repeats are labelled IGNORED.

    Args:
        data: By plain indices; gives (picture, label) pairs, or whole batches if it has ``__getitems__``.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitem__(self, key: int) -> Any:
        item = self.data[key % len(self)]
        return item if key < len(self) or isinstance(item, Unreadable) else (item[0], IGNORED)

    def __getitems__(self, keys: list[int]) -> Any:
        """Return the batch as ``data`` gives it: stacked, or a list."""
        if not hasattr(self.data, "__getitems__"):
            return [self[key] for key in keys]
        images, labels = self.data.__getitems__([key % len(self) for key in keys])
        return images, labels.masked_fill(torch.tensor(keys) >= len(self), IGNORED)
