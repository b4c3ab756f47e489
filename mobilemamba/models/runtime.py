"""Exported networks: how ``load_network`` and ``read_card`` read files that other programs than PyTorch run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError

#: What a call takes: pictures, channels, height and width; None for any number.
Shape = tuple[int | None, ...]
#: Under which a file says, beside its card, what its arithmetic is in.
PRECISION_KEY = "precision"


class RuntimeNetwork(nn.Module):
    """Pictures (B, C, H, W) to the network's answer, computed by another program on the CPU.

    It has no weights to train; a copy of it is the same object.

    Attributes:
        scales: Whether pictures of another size than it takes are scaled to that size, and the answer's maps back:
            for segmenters, which are given pictures of all sizes.

    Args:
        run: From a float32 batch to the answer.
        shape: What ``run`` takes; if the number of pictures is fixed, batches are passed in parts of that number.
        how: What runs it, in words.
        probabilities: Whether it answers with probabilities; their logarithms then stand in for logits.
    """

    def __init__(
        self, run: Callable[[np.ndarray], np.ndarray], shape: Shape, how: str, *, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.scales = False
        self.run, self.shape, self.how, self.probabilities = run, shape, how, probabilities

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.shape[2:]
        if self.scales and height and width and x.shape[2:] != (height, width):
            return F.interpolate(self(scaled(x, (height, width))), x.shape[2:], mode="bilinear")
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
        """The answer to at most as many pictures as ``run`` takes; black ones fill up the rest."""
        lacking = 0 if self.shape[0] is None else self.shape[0] - len(pictures)
        filled = np.pad(pictures, ((0, lacking), *[(0, 0)] * 3)) if lacking else pictures
        return self.run(filled)[: len(pictures)]


def scaled(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Pictures (B, C, H, W) scaled to a height and width, as networks of one size are given them."""
    if pictures.shape[2:] == tuple(size):
        return pictures
    return F.interpolate(pictures, [*size], mode="bilinear", antialias=True)


class Runtime(Protocol):
    """Reads files of one format.

    Attributes:
        name: Of what runs them, in :data:`RUNNERS`.
        reads: The packages for that, as they are imported.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]

    def need(self, packages: tuple[str, ...]) -> None:
        """Refuses where one of the packages is missing.

        Raises:
            ConfigError: With what installs it.
        """

    def metadata(self, path: Path) -> Mapping[str, str]:
        """What a file says of itself.

        Raises:
            ConfigError: If a package for it is missing.
            WeightsError: If it cannot be read.
        """

    def load(self, path: Path) -> RuntimeNetwork:
        """The network in a file, with the errors of :meth:`metadata`."""


#: Ending of files -> who reads them; ``mobilemamba.export`` enters its formats.
RUNTIMES: dict[str, Runtime] = {}
#: Runtime's name -> a network as one that runs there; entered as well.
RUNNERS: dict[str, Callable[[nn.Module], nn.Module]] = {}


def packages_of(runner: str) -> tuple[str, ...]:
    """The packages by which a runtime is called, as they are imported."""
    return next((runtime.reads for runtime in RUNTIMES.values() if runtime.name == runner), ())


def runtime_of(path: str | Path) -> Runtime | None:
    """Who reads a file, by its name; None for a file of PyTorch's."""
    return RUNTIMES.get(Path(path).suffix)
