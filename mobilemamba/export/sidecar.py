"""Formats whose files hold no metadata keep it in a sidecar, a JSON beside the file: ``x.tflite.json``."""

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


class SidecarFormat(Format):
    """Base class of formats whose files hold nothing but a network.

    Their runtimes trust the files: with damaged weights, or the JSON of another file, they may answer all the same, or
    fail in their own ways. So a file is opened only if its JSON was written for it.
    """

    def write_sidecar(self, path: Path, metadata: Mapping[str, str], source: Source) -> None:
        """Writes the metadata of a file, the shape that it takes, and its checksum."""
        shape = "x".join(map(str, source.shape))
        write_json(sidecar_of(path), {**metadata, "shape": shape, "sha256": self._digest(path)})

    def files(self, path: Path) -> tuple[Path, ...]:
        """Returns all files that the runtime reads."""
        return (path,)

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """Returns a function that answers a batch, and a description of it; raises what the runtime raises."""
        raise NotImplementedError

    def metadata(self, path: Path) -> Mapping[str, str]:
        sidecar = sidecar_of(path)
        if not path.exists():
            raise self.unreadable(path, FileNotFoundError())
        if not sidecar.exists():
            raise self.unreadable(path, FileNotFoundError(f"there is no {printable(sidecar.name)} beside it"))
        try:
            metadata = json.loads(sidecar.read_text(encoding="utf-8"))
            if not isinstance(metadata, dict):
                raise ValueError(f"a {type(metadata).__name__} instead of named entries")
            return {key: str(value) for key, value in metadata.items()}
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read {printable(sidecar)}: {error}; expected what mobilemamba export wrote"
            ) from None

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        metadata = self.metadata(path)
        try:
            if self._digest(path) != metadata.get("sha256"):
                raise ValueError(f"it is not what {printable(sidecar_of(path).name)} was written for")
            shape = tuple(int(size) for size in metadata["shape"].split("x"))
            with quiet():
                run, how = self.open(path)
        except Exception as error:  # runtimes raise exceptions of their own
            raise self.unreadable(path, error) from None
        return RuntimeNetwork(run, shape, how, probabilities=metadata.get(OUTPUTS_KEY) == "probabilities")

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        for file in self.files(path):
            if not file.exists():
                raise FileNotFoundError(f"there is no {printable(file.name)} beside it")
            digest.update(file.read_bytes())
        return digest.hexdigest()


def sidecar_of(path: Path) -> Path:
    """Returns the path of a file's sidecar."""
    return path.with_name(f"{path.name}.json")
