"""Batching of pictures and targets, without unreadable pictures, and with marks for targets that do not count."""

from collections.abc import Sized
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset, default_collate, get_worker_info

from mobilemamba.data.sampling import IGNORED

#: Class of a pixel that does not count.
IGNORED_PIXEL = 255
#: The sides of a batch of pictures that keep their aspect ratio are multiples of this.
DIVISOR = 32
#: Size in bytes up to which a worker passes a target tensor by value: torch shares each tensor's memory through a file,
#: which takes 3 ms per picture if a picture has ten tensors.
_BY_VALUE = 2**14


class Unreadable(NamedTuple):
    """Item that a data set returns instead of a picture that cannot be read and is to be skipped."""

    name: str
    reason: str


class Batch(NamedTuple):
    """Batch as passed on by a worker; without any readable picture, ``images`` and ``targets`` are None."""

    images: Any
    targets: Any  # small tensors of a worker are passed as arrays
    unreadable: dict[str, str]  # name -> reason

    def received(self) -> "Batch":
        """Returns the batch with its arrays converted back to tensors."""
        return self._replace(targets=tree_map_only(np.ndarray, torch.from_numpy, self.targets))

    def pin_memory(self) -> "Batch":
        """Returns the received batch in pinned memory, from which a copy to a GPU does not make the host wait.

        A loader's thread calls it; it would itself leave arrays as they are.
        """
        return tree_map_only(Tensor, Tensor.pin_memory, self.received())


class Form(Protocol):
    """How the pictures and targets of a data set become a batch ``(images, targets)``."""

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Returns the batch of pairs (picture, target)."""

    def ignored(self, targets: Any, where_B: Tensor) -> Any:
        """Returns the targets of a batch with those at ``where_B`` (B,) bool changed so that no metric counts them."""

    def blank(self, height: int, width: int) -> tuple[Any, Any]:
        """Returns a batch of one black picture of this size in pixels, which no metric counts."""


class Labels:
    """Pictures (B, 3, H, W) float32 with class indices (B,) int64, which are ``IGNORED`` if they do not count."""

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

    Pixels that do not count are ``IGNORED_PIXEL``. A picture and its mask may have different sizes: the prediction is
    then scaled to the mask's size.
    """

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stacks pictures (3, H, W) of the same size and masks (H', W') of the same size."""
        images, masks = default_collate(items)
        return images, masks

    def ignored(self, targets: Tensor, where_B: Tensor) -> Tensor:
        return targets.masked_fill(where_B[:, None, None], IGNORED_PIXEL)

    def blank(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 3, height, width), torch.full((1, height, width), IGNORED_PIXEL)


class Boxes:
    """Pictures (B, 3, H, W) float32 of any sizes, padded to the largest, with a dict of tensors for each.

    Pictures and masks are padded with zeros on the right and at the bottom, up to multiples of ``divisor``. The dict of
    a prepared picture of h x w pixels with N objects contains:

    - ``boxes`` (N, 4) float32: left, top, right, bottom in pixels of the prepared picture;
    - ``labels`` (N,) int64, from 0, without a background class;
    - ``masks`` (N, h, w) bool, if ``masks``; in evaluations in the original picture's size, without padding;
    - ``iscrowd`` (N,) bool, and ``area`` (N,) float32, as annotated, in pixels of the original picture;
    - ``size`` and ``original_size`` (2,) int64: height and width of the prepared picture without padding, and of the
      original picture;
    - ``image_id`` () int64, and ``counted`` () bool, whether metrics count the picture.

    Args:
        divisor: Divisor of the batch's height and width.
        masks: Whether there are masks.
    """

    def __init__(self, divisor: int = 1, *, masks: bool = False) -> None:
        self.divisor, self.masks = divisor, masks

    def collate(self, items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Pads and stacks pictures (3, h, w), and pads the masks that have their picture's size."""
        sides = zip(*(image.shape[1:] for image, _ in items), strict=True)
        height, width = (-(-max(of_all) // self.divisor) * self.divisor for of_all in sides)
        images = torch.stack([_pad(image, height, width) for image, _ in items])
        targets = [
            target | {"masks": _pad(target["masks"], height, width)}
            if self.masks and target["masks"].shape[1:] == image.shape[1:]
            else target
            for image, target in items
        ]
        return images, targets

    def ignored(self, targets: list[dict[str, Tensor]], where_B: Tensor) -> list[dict[str, Tensor]]:
        return [
            target | {"counted": target["counted"] & ~ignored} for target, ignored in zip(targets, where_B, strict=True)
        ]

    def blank(self, height: int, width: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        target = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "iscrowd": torch.zeros(0, dtype=torch.bool),
            "area": torch.zeros(0),
            "size": torch.tensor([height, width]),
            "original_size": torch.tensor([height, width]),
            "image_id": torch.tensor(-1),
            "counted": torch.tensor(False),
        }
        if self.masks:
            target["masks"] = torch.zeros(0, height, width, dtype=torch.bool)
        return self.collate([(torch.zeros(3, height, width), target)])


def _by_value(x: Tensor) -> Tensor | np.ndarray:
    known = type(x) is Tensor and x.dtype != torch.bfloat16  # numpy has no bfloat16
    return x.detach().numpy() if known and x.nbytes <= _BY_VALUE else x


def _pad(planes: Tensor, height: int, width: int) -> Tensor:
    return F.pad(planes, (0, width - planes.shape[-1], 0, height - planes.shape[-2]))


class MarkedByKey(Dataset[Any]):
    """Wraps a data set for the keys of :class:`~mobilemamba.data.sampling.EvaluationSampler`, and marks repeats.

    Args:
        data: Data set with plain indices; returns pairs (picture, target), or whole batches if it has ``__getitems__``.
    """

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitems__(self, keys: list[int]) -> tuple[Any, Tensor]:
        """Returns the items of ``data``, as a batch or a list, and which of them are repeats, (B,) bool."""
        indices = [key % len(self) for key in keys]
        whole = getattr(self.data, "__getitems__", None)
        items = whole(indices) if whole else [self.data[index] for index in indices]
        return items, torch.tensor(keys) >= len(self)


class Collate:
    """Collates the items of a data set to a :class:`Batch`, without :class:`Unreadable` pictures.

    Args:
        form: Form of the batch.
        whole: Whether the data set returns batches rather than lists of pairs.
        marked: Whether the data set is a :class:`MarkedByKey`.
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
        if repeats_B.any():
            targets = self.form.ignored(targets, repeats_B)
        if get_worker_info() is not None:
            targets = tree_map_only(Tensor, _by_value, targets)
        return Batch(images, targets, unreadable)
