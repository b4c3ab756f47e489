"""What a file cannot say of itself stands beside it, in ``x.tflite.json`` for ``x.tflite``."""

from __future__ import annotations

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
    """Of formats whose files hold a network and no more."""

    def metadata(self, path: Path) -> Mapping[str, str]:
        """See :meth:`Format.metadata`; without the other file nothing is known."""
        if not path.exists():
            raise self.unreadable(path, FileNotFoundError())
        beside = note_of(path)
        if not beside.exists():
            return {}
        try:
            said = json.loads(beside.read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in said.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"cannot read {printable(beside)}: {error}; expected what mobilemamba export wrote"
            ) from None


class WithShape(WithJson):
    """Of those whose files do not even say what shape they take."""

    def note(self, path: Path, metadata: Mapping[str, str], source: Source) -> None:
        """Writes a file's metadata, and its shape."""
        write_note(path, {**metadata, "shape": "x".join(map(str, source.shape))})

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """What computes the answer to a batch, and what that is in words; raises what the runtime does."""
        raise NotImplementedError

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        said = self.metadata(path)
        try:
            with quiet():
                run, how = self.open(path)
            shape = tuple(int(size) for size in said["shape"].split("x"))
        except Exception as error:  # of its own kinds
            raise self.unreadable(path, error) from None
        return RuntimeNetwork(run, shape, how, probabilities=said.get(OUTPUTS_KEY) == "probabilities")


def note_of(path: Path) -> Path:
    """Where a file's metadata stand."""
    return path.with_name(f"{path.name}.json")


def write_note(path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a file's metadata."""
    write_json(note_of(path), dict(metadata))
