"""What a format for exported networks is."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.export.calibration import Calibration
from mobilemamba.export.form import decompositions, without_idle_steps
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import Runtime, RuntimeNetwork
from mobilemamba.text import printable

#: Name of what goes in, in formats that name it.
INPUT = "pictures"
#: Under which a file says, beside its card, what its first answer is: logits, probabilities or a detector's candidates.
OUTPUTS_KEY = "outputs"


@dataclass(frozen=True)
class Source:
    """A network on its way into a file."""

    network: nn.Module  # in the form of ``exportable``, float32 pictures in
    channels: int
    size: tuple[int, int] | None  # height and width; None for any
    batch: int | None  # pictures at a time; None for any
    dtype: str = "float32"  # of weights and arithmetic
    opset: int | None = None  # ONNX's; None for the usual one
    softmax: bool = False  # whether it answers with probabilities
    calibration: Calibration | None = None  # pictures to fit int8 by
    answers: tuple[str, ...] = ("logits",)  # names of what comes out, in formats that name it
    free: bool = False  # whether the network's form is for any size, whatever the tracer sees; see ``form.free``

    @property
    def example(self) -> Tensor:
        """Of two pictures where any number is taken: of one alone the exporter would make a constant."""
        return torch.zeros(self.batch or 2, self.channels, *self.sizes[0])

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Three to try, all the same where it is fixed."""
        if self.size is not None:
            return (self.size,) * 3
        return (192, 256), (256, 192), (150, 333) if self.free else (128, 320)

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self.batch, self.channels, *(self.size or (None, None))

    @cached_property
    def program(self) -> ExportedProgram:
        """As a graph of PyTorch's own operators; raises as :attr:`traced`."""
        with torch.no_grad():
            return without_idle_steps(self.traced.run_decompositions(decompositions()))

    @cached_property
    def traced(self) -> ExportedProgram:
        """As a graph that may have operators of ours.

        Raises:
            ConfigError: If the network does not take such pictures, or cannot be followed.
        """
        dynamic: dict[int, Any] = {} if self.batch else {0: Dim("batch", min=1, max=4096)}
        if self.size is None and not self.free:
            dynamic |= {2: Dim.AUTO, 3: Dim.AUTO}
        with torch.no_grad():
            try:
                program = torch.export.export(self.network, (self.example,), dynamic_shapes=(dynamic,))
            except Exception as error:  # whatever a network may raise
                reason = " ".join(str(error).split())[:300]
                how = "" if self.size else " for pictures of any size; give --size in pixels"
                raise ConfigError(f"the network cannot be followed{how}: {reason}") from error
            (name,) = program.graph_signature.user_inputs
            taken = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
            for what, free, size in zip(("batch", "channels", "size", "size"), self.shape, taken, strict=True):
                if free is None and isinstance(size, int) and not (self.free and what == "size"):
                    raise ConfigError(f"--{what} dynamic: the network takes {size} alone; give that")
            return program


class Format(Runtime):
    """Writes and reads one kind of file.

    Attributes:
        name: Of what runs it.
        suffix: Of its files.
        extra: Of this package, that installs what is needed.
        writes: The packages that writing needs, as they are imported.
        reads: Those that running needs; empty where it cannot be run from Python.
        dtypes: Of weights and arithmetic, that it knows.
        casts: Whether the network itself is to be in another type, and the runtime does not see to that.
        calibrates: Whether int8 is fitted by pictures.
        any_batch: Whether one file takes any number of pictures; and is to by default.
        one_picture: Whether a file takes one picture at a time alone.
        any_size: Whether one file takes pictures of any size.
        suppresses: Whether a file can choose among a detector's boxes.
        fixes_loops: Whether a form for any size is exact for a fixed number of pictures too.
        opsets: Versions of ONNX's operators that can be asked for.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str]
    writes: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    casts: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    any_batch: ClassVar[bool] = False
    one_picture: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    suppresses: ClassVar[bool] = False
    fixes_loops: ClassVar[bool] = True
    opsets: ClassVar[range] = range(0)

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        """Writes the network to ``path``, and what belongs to it beside that by the same name."""
        raise NotImplementedError

    def metadata(self, path: Path) -> Mapping[str, str]:
        raise NotImplementedError

    def load(self, path: Path) -> RuntimeNetwork:
        raise NotImplementedError

    def load_objects(self, path: Path) -> RuntimeNetwork:
        """Pictures to a file's second answer, where it ``suppresses``."""
        raise NotImplementedError

    def in_memory(self, source: Source) -> RuntimeNetwork:
        """The network as one that the runtime runs; by way of a file, where it takes no other."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / f"network{self.suffix}"
            self.write(source, {}, path)
            return self.load(path)

    def need(self, packages: tuple[str, ...]) -> None:
        """Refuses where one of the packages is missing.

        Raises:
            ConfigError: With what installs it.
        """
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            raise ConfigError(f"{self.suffix} files need {missing[0]}: pip install 'mobilemamba[{self.extra}]'")

    def unreadable(self, path: Path, error: Exception) -> WeightsError:
        """What to raise where the runtime refuses a file."""
        if not path.exists():
            return WeightsError(f"no weights at {printable(path)}: expected a file that mobilemamba export wrote")
        reason = " ".join(str(error).split())[:200]
        return WeightsError(f"cannot read {printable(path)}: {reason}; expected a file that mobilemamba export wrote")
