"""From pictures to a batch: which of them are left out, and which do not count."""

from collections.abc import Sized
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from mobilemamba.data.sampling import IGNORED

#: Class of a pixel that does not count.
IGNORED_PIXEL = 255


class Unreadable(NamedTuple):
    """What a data set gives in the place of a picture that cannot be read and is to be skipped."""

    name: str
    reason: str


class Batch(NamedTuple):
    """What a worker hands over. Without any readable picture, ``images`` and ``targets`` are None."""

    images: Any
    targets: Any
    unreadable: dict[str, str]  # name -> reason


class Form(Protocol):
    """How the pictures and targets of a data set become a batch ``(images, targets)``."""

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """The batch of pairs (picture, target)."""

    def ignored(self, targets: Any, where_B: Tensor) -> Any:
        """The targets of a batch, those at ``where_B`` (B,) bool made such that no metric counts them."""

    def blank(self, height: int, width: int) -> tuple[Any, Any]:
        """A batch of one black picture in pixels, which no metric counts."""


class Labels:
    """Pictures (B, 3, H, W) float32 with class indices (B,) int64; those that do not count are ``IGNORED``."""

    def collate(self, items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Stacks pictures (3, H, W) and labels."""
        images, labels = default_collate(items)
        return images, labels

    def ignored(self, targets: Tensor, where_B: Tensor) -> Tensor:
        return targets.masked_fill(where_B, IGNORED)

    def blank(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 3, height, width), torch.tensor([IGNORED])


class Masks:
    """Pictures (B, 3, H, W) float32 with the classes of their pixels (B, H', W') int64.

    Pixels that do not count are ``IGNORED_PIXEL``. The picture and its mask may be of different sizes: a prediction is
    then scaled to the mask's.
    """

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stacks pictures (3, H, W) and masks (H', W'), each of one size."""
        images, masks = default_collate(items)
        return images, masks

    def ignored(self, targets: Tensor, where_B: Tensor) -> Tensor:
        return targets.masked_fill(where_B[:, None, None], IGNORED_PIXEL)

    def blank(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 3, height, width), torch.full((1, height, width), IGNORED_PIXEL)


class MarkedByKey(Dataset[Any]):
    """A data set by the keys of :class:`~mobilemamba.data.sampling.EvaluationSampler`, whose repeats are marked.

    Args:
        data: By plain indices; gives pairs (picture, target), or whole batches if it has ``__getitems__``.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitems__(self, keys: list[int]) -> tuple[Any, Tensor]:
        """What ``data`` gives, a batch or a list, and which of it are repeats, (B,) bool."""
        indices = [key % len(self) for key in keys]
        whole = getattr(self.data, "__getitems__", None)
        items = whole(indices) if whole else [self.data[index] for index in indices]
        return items, torch.tensor(keys) >= len(self)


class Collate:
    """Makes what a data set gives a :class:`Batch`, without the pictures that are :class:`Unreadable`.

    Args:
        form: Of the batch.
        whole: Whether the data set gives batches and no lists of pairs.
        marked: Whether it is a :class:`MarkedByKey`.
    """

    def __init__(self, form: Form, *, whole: bool, marked: bool) -> None:
        self.form, self.whole, self.marked = form, whole, marked

    def __call__(self, given: Any) -> Batch:
        items, repeats_B = given if self.marked else (given, torch.zeros(0, dtype=torch.bool))
        unreadable: dict[str, str] = {}
        if not self.whole:
            kept = [number for number, item in enumerate(items) if not isinstance(item, Unreadable)]
            unreadable = dict(item for item in items if isinstance(item, Unreadable))
            if not kept:
                return Batch(None, None, unreadable)
            repeats_B = repeats_B[kept] if self.marked else repeats_B
            items = self.form.collate([items[number] for number in kept])
        images, targets = items
        return Batch(images, self.form.ignored(targets, repeats_B) if repeats_B.any() else targets, unreadable)
