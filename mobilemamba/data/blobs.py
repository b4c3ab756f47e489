"""Sequences of bytes and of strings that worker processes share."""

import os
from collections.abc import Iterable

import numpy as np


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
