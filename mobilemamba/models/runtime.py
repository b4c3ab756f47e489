"""Exported networks that programs other than PyTorch run, and the readers that load them and their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError

#: Shape of a call's input: pictures, channels, height and width; None for any number.
Shape = tuple[int | None, ...]
#: Key in a file's metadata, beside its card, for the precision of its arithmetic.
PRECISION_KEY = "precision"


class RuntimeNetwork(nn.Module):
    """A network that another program runs on the CPU, from pictures (B, C, H, W) to its outputs.

    It has no weights to train; a copy of it is the same object.

    Args:
        run: Computes the output for a float32 batch.
        shape: Shape that ``run`` takes; with a fixed number of pictures, it is called as often as needed.
        how: Description of what runs it.
        probabilities: Whether ``run`` returns probabilities; their logarithms are then returned as logits.
    """

    def __init__(
        self, run: Callable[[np.ndarray], np.ndarray], shape: Shape, how: str, *, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.run, self.shape, self.how, self.probabilities = run, shape, how, probabilities

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, x: Tensor) -> Tensor:
        wanted = self.shape[1:]
        if any(size not in (None, given) for size, given in zip(wanted, x.shape[1:], strict=True)):
            takes = " x ".join("any" if size is None else str(size) for size in wanted)
            given = " x ".join(map(str, x.shape[1:]))
            raise ConfigError(f"pictures of {given}: the exported network takes {takes}; export it anew by --size")
        pictures = x.detach().to("cpu", torch.float32).contiguous().numpy()
        answer = torch.from_numpy(np.concatenate([self._at_once(part) for part in self._parts(pictures)]))
        answer = answer.to(x.device)
        return answer.clamp_min(torch.finfo(answer.dtype).tiny).log() if self.probabilities else answer

    def _parts(self, pictures: np.ndarray) -> list[np.ndarray]:
        batch = self.shape[0]
        return [pictures] if batch is None else np.split(pictures, range(batch, len(pictures), batch))

    def _at_once(self, pictures: np.ndarray) -> np.ndarray:
        """Answers at most as many pictures as ``run`` takes; black ones fill up a fixed number."""
        lacking = 0 if self.shape[0] is None else self.shape[0] - len(pictures)
        filled = np.pad(pictures, ((0, lacking), *[(0, 0)] * 3)) if lacking else pictures
        return self.run(filled)[: len(pictures)]


def scaled(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Scales pictures (B, C, H, W) to a height and width, as for networks of a fixed size."""
    if pictures.shape[2:] == tuple(size):
        return pictures
    return F.interpolate(pictures, [*size], mode="bilinear", antialias=True)


class Runtime(Protocol):
    """Reader of files in one format.

    Attributes:
        name: Name of the program that runs them, as in :data:`RUNNERS`.
        reads: Import names of the packages that it needs.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]

    def need(self, packages: tuple[str, ...]) -> None:
        """Raises if one of the packages is missing.

        Raises:
            ConfigError: If one is; the message says how to install it.
        """

    def metadata(self, path: Path) -> Mapping[str, str]:
        """Returns the metadata of a file.

        Raises:
            ConfigError: If a package that it needs is missing.
            WeightsError: If the file cannot be read.
        """

    def load(self, path: Path) -> RuntimeNetwork:
        """Loads the network in a file; raises what :meth:`metadata` raises."""


#: File suffix to its reader; filled by ``mobilemamba.export``.
RUNTIMES: dict[str, Runtime] = {}
#: Name of a runtime to a function that returns a network that runs in it; filled likewise.
RUNNERS: dict[str, Callable[[nn.Module], nn.Module]] = {}


def packages_of(runner: str) -> tuple[str, ...]:
    """Returns the import names of the packages that a runtime needs."""
    return next((runtime.reads for runtime in RUNTIMES.values() if runtime.name == runner), ())


def runtime_of(path: str | Path) -> Runtime | None:
    """Returns the reader of a file, by its suffix; None for a file that PyTorch reads."""
    return RUNTIMES.get(Path(path).suffix)
