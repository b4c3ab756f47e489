"""Data sets of labelled pictures, read one by one on access, from files or other sources."""

from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from mobilemamba.data.blobs import Texts
from mobilemamba.data.picture_dataset import PictureDataset
from mobilemamba.data.pictures import decode_picture, refusal
from mobilemamba.errors import DataError


class Source(Protocol):
    """A fixed list of pictures with their labels.

    Attributes:
        labels: (N,) int64.
    """

    labels: np.ndarray

    def name(self, index: int) -> str:
        """Returns the picture's name for error messages: its path."""
        ...

    def open(self, index: int) -> str | IO[bytes]:
        """Returns the path of the picture, or a file object with its bytes."""
        ...


class FileSource:
    """Source of pictures that are files.

    Args:
        samples: Path and label of each picture.

    Attributes:
        paths: Paths of the files.
        labels: (N,) int64.
    """

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.paths = Texts(path for path, _ in samples)
        self.labels = np.array([label for _, label in samples], np.int64)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> str:
        return self.paths[index]


class LabelledSet(PictureDataset):
    """Pictures of a source with their labels: (3, H, W) float32 and an integer.

    Args:
        source: The pictures.
        transform: Transform of a picture to a tensor.
        **options: Arguments of :class:`~mobilemamba.data.picture_dataset.PictureDataset`.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor], **options: Any) -> None:
        super().__init__(**options)
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source.labels)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return decode_picture(self.source.open(index), upright=self.upright), int(self.source.labels[index])

    def prepared(self, picture: Image.Image, target: int) -> tuple[Tensor, int]:
        return self.transform(picture), target

    changed = prepared

    def refusal(self, index: int, reason: DataError) -> DataError:
        return refusal(self.name(index), reason)
