"""Data sets of labelled pictures, read one by one on access, from files or other sources."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mobilemamba.data.batches import Unreadable
from mobilemamba.data.pictures import decode_picture, refusal
from mobilemamba.data.sampling import seeded
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


class Blobs:
    """A sequence of bytes objects in one block of memory.

    Forked worker processes share such a block. They would copy a list over time, as reading an element changes its
    reference count: a quarter of a GB per worker for the paths of ImageNet.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        pieces = list(pieces)
        self._bytes = b"".join(pieces)
        self._ends = np.cumsum([0, *map(len, pieces)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        i = range(len(self))[index]
        return self._bytes[self._ends[i] : self._ends[i + 1]]


class Texts:
    """A sequence of strings in one block of memory, see :class:`Blobs`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._encoded = Blobs(os.fsencode(text) for text in texts)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._encoded[index])


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


class PictureSet(Dataset[tuple[Tensor, int] | Unreadable]):
    """Pictures of a source; random changes depend only on (seed, epoch, picture).

    Indexed by the keys of :mod:`mobilemamba.data.sampling`; returns (3, H, W) float32 and the label.

    Args:
        source: The pictures.
        transform: Transform of a picture to a tensor.
        seed: 0 or more.
        upright: Rotate pictures by their EXIF orientation.
        skip: Return an :class:`~mobilemamba.data.batches.Unreadable` for a picture that cannot be read.

    Raises:
        DataError: On access, if the picture cannot be read and ``skip`` is not set.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        *,
        upright: bool = True,
        skip: bool = False,
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.upright = upright
        self.skip = skip

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, int] | Unreadable:
        epoch, index = divmod(key, len(self))
        try:
            picture = decode_picture(self.source.open(index), upright=self.upright)
        except DataError as error:
            if self.skip:
                return Unreadable(self.name(index), str(error))
            raise refusal(self.name(index), error) from error
        with seeded(self.seed, epoch, index):
            return self.transform(picture), int(self.source.labels[index])

    def name(self, index: int) -> str:
        return self.source.name(index)
