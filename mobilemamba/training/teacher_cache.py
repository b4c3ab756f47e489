"""A teacher's answers on disk, for trainings that show the very same pictures again and again."""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mobilemamba.errors import ConfigError, DataError

#: Share of an epoch's pictures below which a cache is of no use.
LEAST_HIT_RATE = 0.01


class TeacherCache:
    """Logits by the content of the pictures they are for, in one SQLite file for each teacher.

    The key is a hash of the picture itself, so no picture can get the answer for another one, whatever the order,
    augmentation or epoch. Several processes of one machine may share a folder, and a killed one leaves no damage; the
    disk must be a local one, as SQLite's write-ahead log needs shared memory.

    Attributes:
        path: The file.
        hits: Pictures answered from the file so far, by this process.
        misses: Pictures that the teacher had to see.
        active: False after it was given up; then every picture goes to the teacher.
    """

    def __init__(self, folder: str | Path, fingerprint: str, num_classes: int) -> None:
        """Opens or creates the file.

        Args:
            folder: Created if it is missing.
            fingerprint: Of the teacher, see :meth:`Teacher.fingerprint`; the file is named by it.
            num_classes: Length of an answer.

        Raises:
            ConfigError: If the folder cannot be made.
            DataError: If the file cannot be opened, or is damaged.
        """
        self.path = Path(folder) / f"{fingerprint}.sqlite"
        self.num_classes = num_classes
        self.hits = self.misses = 0
        self.active = True
        self._epochs = self._hits_before = self._misses_before = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"distillation.cache={folder}: {error.strerror}; choose a folder that can be written"
            ) from None
        # Not SQLite's own lock: processes that create a file at once do not wait for each other's change of its mode.
        with self._errors(), FileLock(self.path.with_suffix(".lock"), timeout=60):
            self._db = sqlite3.connect(self.path, timeout=60)  # seconds to wait for other processes
            weakref.finalize(self, self._db.close)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, not the file
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (picture BLOB PRIMARY KEY, logits BLOB NOT NULL)")

    def __call__(self, pictures: Tensor, teacher: Callable[[Tensor], Tensor]) -> Tensor:
        """The answers for a batch; pictures that are new go to the teacher together.

        Args:
            pictures: (B, C, H, W), as the student sees them.
            teacher: From pictures (b, C, H, W) to logits (b, classes) float32; called without any of the known ones.

        Returns:
            Logits (B, classes) float32 on the pictures' device: for known pictures bit for bit what was first found.

        Raises:
            DataError: If the file cannot be read or written.
        """
        if not self.active:
            return teacher(pictures)
        keys = self._keys(pictures)
        answers = self._read(keys)
        new = {key: i for i, key in enumerate(keys) if key not in answers}
        if new:
            found = teacher(pictures[list(new.values())]).cpu()
            self._write(fresh := dict(zip(new, found.numpy(), strict=True)))
            answers |= fresh
        self.misses += len(new)
        self.hits += len(keys) - len(new)
        return torch.from_numpy(np.stack([answers[key] for key in keys])).to(pictures.device)

    def end_epoch(self) -> None:
        """Gives the cache up, with a warning, if hardly a picture of a later epoch was known."""
        hits, misses = self.hits - self._hits_before, self.misses - self._misses_before
        self._hits_before, self._misses_before = self.hits, self.misses
        self._epochs += 1
        if self.active and self._epochs > 1 and hits < LEAST_HIT_RATE * (hits + misses):
            self.active = False
            warnings.warn(
                f"of this epoch's {hits + misses} pictures the teacher's cache knew {hits}: augmentation or mixing "
                "makes every picture a new one, so it is no longer used; leave distillation.cache out, and delete "
                f"{self.path}",
                stacklevel=2,
            )

    def _keys(self, pictures: Tensor) -> list[bytes]:
        # The answers depend on the precision, too.
        device = pictures.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        kind = f"{pictures.dtype} {tuple(pictures.shape[1:])} {autocast}\n".encode()
        return [hashlib.blake2b(kind + tensor_bytes(picture), digest_size=16).digest() for picture in pictures.cpu()]

    def _read(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        answers = {}
        with self._errors():
            for key in keys:
                row = self._db.execute("SELECT logits FROM answers WHERE picture = ?", (key,)).fetchone()
                if row is None:
                    continue
                if len(row[0]) != 4 * self.num_classes:
                    raise self._damaged(
                        f"an answer of {len(row[0])} bytes, where {self.num_classes} classes need 4 each"
                    )
                answers[key] = np.frombuffer(row[0], np.float32)
        return answers

    def _write(self, answers: dict[bytes, np.ndarray]) -> None:
        rows = [(key, answer.tobytes()) for key, answer in answers.items()]
        with self._errors(), self._db:
            self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"teacher's cache {self.path}: {reason}; delete the file, or choose another distillation.cache"
        )


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's elements in logical order, whatever its layout and dtype."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
