"""Pictures that are read one by one when they are asked for: from files, or from anything else that can list them."""

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
        """What errors call the picture: its path."""
        ...

    def open(self, index: int) -> str | IO[bytes]:
        """The path of the picture, or a file of its bytes."""
        ...


class Blobs:
    """Many pieces of bytes in one block of memory.

    Worker processes share such a block. Of a list they would come to hold a copy each, as reading an element of it
    writes to its count of references: a quarter of a GB per worker for the paths of ImageNet.
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
    """Many strings in one block of memory, as :class:`Blobs`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._encoded = Blobs(os.fsencode(text) for text in texts)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._encoded[index])


class FileSource:
    """Files on the disk.

    Args:
        samples: Path and label of each.

    Attributes:
        paths: Of the files.
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
    """Pictures of a source, transformed with randomness that is a function of (seed, epoch, picture).

    Indexed by the keys of :mod:`mobilemamba.data.sampling`; gives (3, H, W) float32 and the label.

    Args:
        source: The pictures.
        transform: From a picture to a tensor.
        seed: 0 or more.
        upright: Turn pictures as their EXIF orientation says.
        skip: Give an :class:`~mobilemamba.data.batches.Unreadable` for a picture that cannot be read.

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
