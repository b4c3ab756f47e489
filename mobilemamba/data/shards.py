"""Pictures in tar files, as packed by WebDataset, with one index over all files for random access.

The files are not streamed. The index has the offset of each picture, in an order that does not depend on how they were
packed, so that order, augmentation, resuming and counts are those of the same pictures in a folder.
"""

import io
import json
import os
import re
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from mobilemamba.data.blobs import Texts
from mobilemamba.data.pictures import EXTENSIONS
from mobilemamba.errors import DataError
from mobilemamba.files import write_text_atomic

_KINDS = {ending.removeprefix(".") for ending in EXTENSIONS}
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$")
_VERSION = 2
_OPEN_FILES = 64  # limit per process, as a data set may have more files than the often 1,024 that systems allow


def find_shards(root: Path, part: str) -> list[Path]:
    """Returns the sorted tar files whose name ends in a part and a number, e.g. ``imagenet1k-train-0012.tar``.

    Args:
        root: Folder of the tar files.
        part: Regular expression for the name of the part, e.g. ``"val|validation"``.

    Raises:
        DataError: If such a file exists only in compressed form, which does not allow random access.
    """
    numbered = re.compile(rf"(^|.*[-_.])({part})[-_.]?\d+$")
    names = sorted(path.name for path in root.iterdir())
    shards = [name for name in names if name.endswith(".tar") and numbered.match(name.removesuffix(".tar"))]
    for name in names:
        stem = _COMPRESSED.sub("", name)
        if stem != name and numbered.match(stem) and f"{stem}.tar" not in shards:
            raise DataError(
                f"{root / name} is compressed, so that no picture can be read without all before it: unpack it to "
                f"{stem}.tar"
            )
    return [root / name for name in shards]


class _Member(NamedTuple):
    label: int
    name: str
    shard: int
    offset: int
    size: int


class ShardSource:
    """Source of pictures in tar files, sorted by label and file name.

    The label of a member ``key.jpg`` (or with another picture extension) is a number from 0 in ``key.cls``, or the
    class after which a folder in its path is named. The index is stored in a file beside the tar files, if possible,
    and made again when their names, sizes or modification times change.

    Args:
        shards: The tar files, all in one folder.
        labels: Name of a class -> label.
        index_name: File name of the index.

    Attributes:
        shards: The tar files.
        labels: (N,) int64.
        shard_of: (N,) int64, the index of each picture's file in ``shards``.

    Raises:
        DataError: If a file is damaged or compressed, or a picture has no label.
    """

    def __init__(self, shards: list[Path], labels: dict[str, int], index_name: str) -> None:
        self.shards = shards
        state = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in shards]
        file = shards[0].with_name(index_name)
        index = _read_index(file, state)
        if index is None:
            members = sorted(member for number, path in enumerate(shards) for member in _scan(path, number, labels))
            columns = [list(column) for column in zip(*members, strict=True)] or [[]] * len(_Member._fields)
            index = dict(zip(_Member._fields, columns, strict=True))
            _write_index(file, {"version": _VERSION, "shards": state, **index})
        self.labels = np.array(index["label"], np.int64)
        self.shard_of = np.array(index["shard"], np.int64)
        self._names = Texts(index["name"])
        self._offsets = np.array(index["offset"], np.int64)
        self._sizes = np.array(index["size"], np.int64)
        self._files = _OpenFiles()

    def name(self, index: int) -> str:
        """Returns the tar file and the member's name in it."""
        return f"{self.shards[self.shard_of[index]]}/{self._names[index]}"

    def open(self, index: int) -> IO[bytes]:
        """Returns a file object with the bytes of the picture.

        Raises:
            DataError: If they cannot be read.
        """
        try:
            file = self._files.get(self.shards[self.shard_of[index]])
            file.seek(int(self._offsets[index]))
            return io.BytesIO(file.read(int(self._sizes[index])))
        except OSError as error:
            raise DataError(error.strerror or str(error)) from error


class _OpenFiles:
    """Cache of open files, opened anew in each process, as processes must not share a position in a file."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[Path, IO[bytes]] = OrderedDict()

    def get(self, path: Path) -> IO[bytes]:
        if self._process != os.getpid():  # this is a forked worker
            self._close()
            self._process = os.getpid()
        if path not in self._files:
            if len(self._files) == _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = path.open("rb")
        self._files.move_to_end(path)
        return self._files[path]

    def _close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def __reduce__(self) -> tuple[type, tuple[()]]:  # a spawned worker gets none of the open files
        return type(self), ()

    def __del__(self) -> None:
        self._close()


def _scan(path: Path, number: int, labels: dict[str, int]) -> Iterator[_Member]:
    """Yields the pictures of one tar file, the ``number``-th."""
    pictures: dict[str, tarfile.TarInfo] = {}
    given: dict[str, int] = {}
    try:
        # "r:" means uncompressed.
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                if base.startswith("."):
                    continue
                stem, _, kind = base.partition(".")  # WebDataset's rule: the first dot ends the key
                key = f"{folder}/{stem}"
                if kind.lower() in _KINDS:
                    if not member.isreg() or member.issparse():
                        raise DataError(f"{path}: {member.name} is no plain file: pack the file again")
                    pictures[key] = member
                elif kind == "cls" and member.isreg():
                    given[key] = _class_index(path, member, tar, len(labels))
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file ({error}): pack it again") from error
    for key, member in pictures.items():
        named = [labels[part] for part in PurePosixPath(member.name).parts[:-1] if part in labels]
        if key not in given and not named:
            raise DataError(
                f"{path}: {member.name} has no label: add {key.strip('/')}.cls with the number of its class, or put it "
                "into a folder of the class's name"
            )
        if named and given.get(key, named[-1]) != named[-1]:
            raise DataError(
                f"{path}: {member.name} is of class {named[-1]} by its folder, {given[key]} by its .cls file"
            )
        label = given[key] if key in given else named[-1]
        yield _Member(label, member.name.rpartition("/")[2], number, member.offset_data, member.size)


def _class_index(path: Path, member: tarfile.TarInfo, tar: tarfile.TarFile, classes: int) -> int:
    content = tar.extractfile(member)
    text = content.read(20).decode("ascii", "replace").strip() if content else ""
    if not text.isdecimal() or int(text) >= classes:
        raise DataError(f"{path}: {member.name} holds {text!r}: expected a number from 0 to {classes - 1}")
    return int(text)


def _read_index(file: Path, state: list[list[Any]]) -> dict[str, list[Any]] | None:
    """Reads the stored index; None if there is none for the tar files in their current state."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        columns = {name: index[name] for name in _Member._fields}
        return columns if index["version"] == _VERSION and index["shards"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_index(file: Path, index: dict[str, Any]) -> None:
    try:
        write_text_atomic(file, json.dumps(index, separators=(",", ":")))
    except OSError as error:
        warnings.warn(
            f"{file} cannot be written ({error.strerror}): the tar files are searched again at each start", stacklevel=2
        )
