"""Data sets of pictures with boxes around objects, read one by one on access."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilemamba.data.blobs import Blobs, Texts
from mobilemamba.data.coco_masks import unpack
from mobilemamba.data.picture_dataset import PictureDataset
from mobilemamba.data.pictures import decode_picture
from mobilemamba.errors import DataError


@dataclass(frozen=True)
class Objects:
    """The M objects of N pictures, in the order of the pictures; stored in arrays, which worker processes share.

    Attributes:
        paths: Paths of the pictures.
        ids: (N,) int64, the pictures' ids in result files.
        sizes: (N, 2) int64, height and width of each picture.
        starts: (N + 1,) int64, the index of each picture's first object, followed by M.
        boxes: (M, 4) float32, left, top, right, bottom in pixels.
        labels: (M,) int64, from 0.
        areas: (M,) float32, in pixels.
        crowds: (M,) bool.
        entries: (M,) int64, the objects' positions in their annotation file, for messages.
        masks: M masks packed by :func:`~mobilemamba.data.coco_masks.pack`; None if masks are not used.
    """

    paths: Texts
    ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    entries: np.ndarray
    masks: Blobs | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def taken(self, pictures: np.ndarray, paths: Sequence[str] | None = None) -> "Objects":
        """Returns the objects of selected pictures.

        Args:
            pictures: Indices of the pictures, (n,) int64.
            paths: New paths of these pictures; None keeps their paths.
        """
        counts = np.diff(self.starts)[pictures]
        before = np.repeat(np.cumsum([0, *counts])[:-1], counts)
        chosen = np.repeat(self.starts[pictures], counts) + np.arange(len(before)) - before
        return Objects(
            Texts(self.paths[p] for p in pictures) if paths is None else Texts(paths),
            self.ids[pictures],
            self.sizes[pictures],
            np.cumsum([0, *counts]),
            self.boxes[chosen],
            self.labels[chosen],
            self.areas[chosen],
            self.crowds[chosen],
            self.entries[chosen],
            None if self.masks is None else Blobs(self.masks[m] for m in chosen),
        )


class ObjectSet(PictureDataset):
    """Pictures (3, H, W) float32 with their objects, a dict that :class:`~mobilemamba.data.batches.Boxes` describes.

    In training, crowds and objects that are thinner than a pixel or have no area are left out.

    Args:
        objects: The pictures and their objects.
        transform: Transform of the picture alone; with a seed, of the picture and its target.
        **options: Arguments of :class:`~mobilemamba.data.picture_dataset.PictureDataset`.
    """

    def __init__(self, objects: Objects, transform: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.objects, self.transform = objects, transform

    def __len__(self) -> int:
        return len(self.objects)

    def name(self, index: int) -> str:
        return self.objects.paths[index]

    def prepared(self, picture: Image.Image, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.transform(picture)
        size = torch.tensor(image.shape[1:])
        down, across = (size / target["original_size"]).tolist()
        boxes = target["boxes"] * torch.tensor([across, down, across, down])
        return image, {**target, "size": size, "boxes": boxes}

    def changed(self, picture: Image.Image, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.transform(picture, target)

    def read(self, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
        objects = self.objects
        picture = decode_picture(objects.paths[index], upright=self.upright)
        width, height = picture.size
        known = tuple(objects.sizes[index].tolist())
        if known != (height, width):
            turned = known == (width, height) and self.upright
            raise DataError(
                f"{width} x {height} pixels, but annotated as {known[1]} x {known[0]}"
                f"{', turned; data.upright=false leaves pictures as stored' if turned else ''}"
            )
        chosen = np.arange(objects.starts[index], objects.starts[index + 1])
        boxes = objects.boxes[chosen]
        if self.seed is not None:
            boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
            thick = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
            used = thick & ~objects.crowds[chosen] & (objects.areas[chosen] > 0)
            boxes, chosen = boxes[used], chosen[used]
        target = make_target(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(objects.labels[chosen]),
            iscrowd=torch.from_numpy(objects.crowds[chosen]),
            area=torch.from_numpy(objects.areas[chosen]),
            masks=None if objects.masks is None else self._masks(chosen, height, width),
            size=(height, width),
            original_size=(height, width),
            image_id=int(objects.ids[index]),
        )
        return picture, target

    def _masks(self, chosen: np.ndarray, height: int, width: int) -> Tensor:
        assert self.objects.masks is not None
        masks_NHW = np.zeros((len(chosen), height, width), bool)
        for n, m in enumerate(chosen):
            try:
                masks_NHW[n] = unpack(self.objects.masks[m], height, width)
            except DataError as error:
                raise DataError(f"annotations[{self.objects.entries[m]}]: {error}") from error
        return torch.from_numpy(masks_NHW)


def make_target(
    *,
    boxes: Tensor,
    labels: Tensor,
    iscrowd: Tensor,
    area: Tensor,
    masks: Tensor | None,
    size: tuple[int, int],
    original_size: tuple[int, int],
    image_id: int,
) -> dict[str, Tensor]:
    """Returns the target of a picture that counts, as described in :class:`~mobilemamba.data.batches.Boxes`."""
    return {
        "boxes": boxes,
        "labels": labels,
        **({} if masks is None else {"masks": masks}),
        "iscrowd": iscrowd,
        "area": area,
        "size": torch.tensor(size),
        "original_size": torch.tensor(original_size),
        "image_id": torch.tensor(image_id),
        "counted": torch.tensor(True),
    }
