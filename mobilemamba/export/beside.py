"""Formats whose files hold no metadata keep it in a JSON beside the file: ``x.tflite.json`` for ``x.tflite``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mobilemamba.errors import WeightsError
from mobilemamba.export.format import OUTPUTS_KEY, Format, Source
from mobilemamba.export.quiet import quiet
from mobilemamba.files import write_json
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba.text import printable


class WithJson(Format):
    """Of formats whose files hold a network and no more.

    The runtimes trust them: of spoilt weights, or by another file's JSON, they may make an answer all the same, or fail
    in ways of their own. So none is opened but that which its JSON was written for.
    """

    def note(self, path: Path, metadata: Mapping[str, str], source: Source) -> None:
        """Writes a file's metadata, the shape that it takes, and by what it is known."""
        shape = "x".join(map(str, source.shape))
        write_json(note_of(path), {**metadata, "shape": shape, "sha256": self._digest(path)})

    def files(self, path: Path) -> tuple[Path, ...]:
        """All that the runtime reads."""
        return (path,)

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """What computes the answer to a batch, and what that is in words; raises what the runtime does."""
        raise NotImplementedError

    def metadata(self, path: Path) -> Mapping[str, str]:
        beside = note_of(path)
        if not path.exists():
            raise self.unreadable(path, FileNotFoundError())
        if not beside.exists():
            raise self.unreadable(path, FileNotFoundError(f"there is no {printable(beside.name)} beside it"))
        try:
            said = json.loads(beside.read_text(encoding="utf-8"))
            if not isinstance(said, dict):
                raise ValueError(f"a {type(said).__name__} in the place of its entries")
            return {key: str(value) for key, value in said.items()}
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read {printable(beside)}: {error}; expected what mobilemamba export wrote"
            ) from None

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        said = self.metadata(path)
        try:
            if self._digest(path) != said.get("sha256"):
                raise ValueError(f"it is not what {printable(note_of(path).name)} was written for")
            shape = tuple(int(size) for size in said["shape"].split("x"))
            with quiet():
                run, how = self.open(path)
        except Exception as error:  # of the runtimes' own kinds
            raise self.unreadable(path, error) from None
        return RuntimeNetwork(run, shape, how, probabilities=said.get(OUTPUTS_KEY) == "probabilities")

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        for file in self.files(path):
            if not file.exists():
                raise FileNotFoundError(f"there is no {printable(file.name)} beside it")
            digest.update(file.read_bytes())
        return digest.hexdigest()


def note_of(path: Path) -> Path:
    """Where a file's metadata stand."""
    return path.with_name(f"{path.name}.json")
