"""Defines the interface of a format for exported networks."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.export.calibration import Calibration
from mobilemamba.export.lowering import decompositions, without_idle_steps
from mobilemamba.export.quiet import quiet
from mobilemamba.files import why_no_plain_file
from mobilemamba.models.runtime import Runtime, RuntimeNetwork
from mobilemamba.text import printable

#: Name of the input, in formats with names.
INPUT = "pictures"
#: Key in a file's metadata, beside its card, for its first output: logits, probabilities or a detector's candidates.
OUTPUTS_KEY = "outputs"

# What runtimes say before their reason: codes, and places in their own source.
_PLACE = re.compile(r"\[\w+\] : \d+ : \w+ : |Exception from \S+:\s")


@dataclass(frozen=True)
class Source:
    """A network to be exported, and how."""

    network: nn.Module  # as returned by ``exportable``; takes float32 pictures
    channels: int
    size: tuple[int, int] | None  # height and width; None for any
    batch: int | None  # pictures at a time; None for any
    dtype: str = "float32"  # of weights and arithmetic
    opset: int | None = None  # ONNX's; None for the default
    softmax: bool = False  # whether outputs are probabilities
    calibration: Calibration | None = None  # pictures that int8 is calibrated on
    answers: tuple[str, ...] = ("logits",)  # names of the outputs, in formats with names
    #: Whether the network takes any size, though traced at one, by functions of ONNX; see ``lowering.onnx_functions``.
    onnx_functions: bool = False

    @property
    def example(self) -> Tensor:
        """Example input; of two pictures if any number is allowed, as the exporter would make a constant of one."""
        return torch.zeros(self.batch or 2, self.channels, *self.sizes[0])

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Three sizes to try; all the same if the size is fixed."""
        if self.size is not None:
            return (self.size,) * 3
        return (192, 256), (256, 192), (150, 333) if self.onnx_functions else (128, 320)

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self.batch, self.channels, *(self.size or (None, None))

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as a graph of PyTorch's own operators; raises as :attr:`traced`."""
        with torch.no_grad():
            return without_idle_steps(self.traced.run_decompositions(decompositions()))

    @property
    def without_ours(self) -> ExportedProgram:
        """The network as a graph without operators of ours, for converters that decompose PyTorch's own by themselves.

        Nearly always that is :attr:`traced`, as lowering leaves none; decomposing it twice would take seconds.
        """
        ours = any("mobilemamba" in str(node.target) for node in self.traced.graph.nodes)
        return self.program if ours else self.traced

    @cached_property
    def traced(self) -> ExportedProgram:
        """The network as a graph that may contain operators of ours.

        Raises:
            ConfigError: If the network does not take such pictures, or cannot be traced.
        """
        dynamic: dict[int, Any] = {} if self.batch else {0: Dim("batch", min=1, max=4096)}
        if self.size is None and not self.onnx_functions:
            dynamic |= {2: Dim.AUTO, 3: Dim.AUTO}
        with torch.no_grad():
            try:
                program = torch.export.export(self.network, (self.example,), dynamic_shapes=(dynamic,))
            except Exception as error:  # networks may raise anything
                reason = " ".join(str(error).split())[:300]
                how = "" if self.size else " for pictures of any size; give --size in pixels"
                raise ConfigError(f"the network cannot be traced{how}: {reason}") from error
            (name,) = program.graph_signature.user_inputs
            taken = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
            for what, asked, size in zip(("batch", "channels", "size", "size"), self.shape, taken, strict=True):
                if asked is None and is_concrete_int(size) and not (self.onnx_functions and what == "size"):
                    raise ConfigError(f"--{what} dynamic: the network takes {size} alone; give that")
            return program


class Format(Runtime):
    """Writes and reads one kind of file.

    Attributes:
        name: Name of the runtime.
        suffix: Suffix of the files.
        extra: Extra of this package that installs what is needed.
        writes: Import names of the packages that writing needs.
        reads: Import names of the packages that running needs; empty if files cannot be run from Python.
        dtypes: Dtypes of weights and arithmetic that it supports.
        casts: Whether the network must be converted to another dtype, because the runtime does not do so.
        calibrates: Whether int8 is calibrated on pictures.
        any_batch: Whether one file takes any number of pictures, which is then the default.
        one_picture: Whether a file takes only one picture at a time.
        any_size: Whether one file takes pictures of any size.
        suppresses: Whether a file can choose among a detector's boxes.
        batch_with_any_size: Whether a file that takes pictures of any size may take a fixed number of them.
        opsets: Versions of ONNX's operators that can be chosen.
    """

    suffix: ClassVar[str]
    extra: ClassVar[str]
    writes: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    casts: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    any_batch: ClassVar[bool] = False
    one_picture: ClassVar[bool] = False
    any_size: ClassVar[bool] = False
    suppresses: ClassVar[bool] = False
    batch_with_any_size: ClassVar[bool] = True
    opsets: ClassVar[range] = range(0)

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        """Writes the network to ``path``, and any further files beside it under the same name."""
        raise NotImplementedError

    def metadata(self, path: Path) -> Mapping[str, str]:
        raise NotImplementedError

    def load(self, path: Path) -> RuntimeNetwork:
        raise NotImplementedError

    def load_objects(self, path: Path) -> RuntimeNetwork:
        """Loads a network that returns a file's second output, for formats that ``suppresses``."""
        raise NotImplementedError

    def in_memory(self, source: Source) -> RuntimeNetwork:
        """Makes a network that the runtime runs; by a temporary file, if it takes nothing else."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / f"network{self.suffix}"
            self.write(source, {}, path)
            return self.load(path)

    def need(self, packages: tuple[str, ...]) -> None:
        """Raises if one of the packages is missing.

        Raises:
            ConfigError: If one is; the message says how to install it.
        """
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            raise ConfigError(f"{self.suffix} files need {missing[0]}: pip install 'mobilemamba[{self.extra}]'")

    def unreadable(self, path: Path, error: Exception) -> WeightsError:
        """Returns the error to raise when the runtime refuses a file."""
        if not path.exists():
            return WeightsError(f"no weights at {printable(path)}: expected a file that mobilemamba export wrote")
        reason = " ".join(_PLACE.sub("", str(error)).split())[:200]
        if kind := why_no_plain_file(path):
            reason = f"it is {kind}"
        elif not path.stat().st_size:
            reason = "it is empty"
        return WeightsError(f"cannot read {printable(path)}: {reason}; expected a file that mobilemamba export wrote")
