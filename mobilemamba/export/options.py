"""Options of an export, and checks whether they can work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mobilemamba.dense import Detector
from mobilemamba.errors import ConfigError
from mobilemamba.export.calibration import Calibration
from mobilemamba.export.format import Format
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.text import printable


@dataclass(frozen=True)
class Options:
    """Options for writing a network.

    Attributes:
        any_size: Take pictures of any size, not just the card's, if the format and the network can.
        batch: Pictures at a time; by default any number if the format can, else 1.
        any_batch: Whether to take any number of pictures; None for any number if the format can.
        dtype: float32, float16, bfloat16 or int8.
        opset: ONNX's opset.
        calibration: Pictures whose activations determine int8's scales, and to which both networks' answers are
            compared; or a folder of them, see ``read_calibration``.
        softmax: Return probabilities instead of logits.
        nms: Let a detector's file also return objects, chosen by non-maximum suppression.
        verify: Compare the file's outputs with the network's, and refuse it if they differ.
    """

    any_size: bool = False
    batch: int | None = None
    any_batch: bool | None = None
    dtype: str = "float32"
    opset: int | None = None
    calibration: Calibration | Path | None = None
    softmax: bool = False
    nms: bool = False
    verify: bool = True

    def batch_size(self, form: Format) -> int | None:
        """Returns how many pictures a file takes at a time; None for any number."""
        usual = form.any_batch and not self.nms and self.batch is None
        return None if (usual if self.any_batch is None else self.any_batch) else self.batch or 1

    def uses_onnx_functions(self, network: nn.Module) -> bool:
        """Returns whether the network takes any size by functions of ONNX, see ``lowering.onnx_functions``."""
        return self.any_size and isinstance(network, MobileMamba)

    def check(self, form: Format, network: nn.Module) -> None:
        """Refuses what is impossible or would have no effect, before any work is done for it.

        Raises:
            ConfigError: If an option does not fit the format, the network or another option.
        """
        self._check_form(form)
        self._check_network(form, network)

    def _check_form(self, form: Format) -> None:
        suffix = form.suffix
        if self.dtype not in form.dtypes:
            raise ConfigError(f"--dtype {self.dtype}: {suffix} files take {' or '.join(form.dtypes)}")
        if self.opset is not None and self.opset not in form.opsets:
            known = f"expected {form.opsets[0]} to {form.opsets[-1]}" if form.opsets else "only .onnx files have one"
            raise ConfigError(f"--opset {self.opset}: {known}; leave it out for the usual one")
        for asked, can, what in ((self.any_size, form.any_size, "size"), (self.any_batch, form.any_batch, "batch")):
            if asked and not can:
                raise ConfigError(f"{suffix} files take no dynamic {what}; give a number")
        if form.one_picture and self.batch not in (None, 1):
            raise ConfigError(f"--batch {self.batch}: {suffix} files take one picture at a time; leave it out")
        if self.nms and not form.suppresses:
            raise ConfigError("--nms: only .onnx and .xml files can choose among boxes; leave it out")
        if self.nms and self.any_batch:
            raise ConfigError("--nms: each picture's boxes are chosen apart; give the number of pictures by --batch")
        fits = self.dtype == "int8" and form.calibrates
        if fits and self.calibration is None:
            raise ConfigError(
                f"--dtype int8: {suffix} files are fitted by pictures; give a folder of some hundred by --calibration"
            )
        if self.calibration is not None and not fits and not (self.verify and form.reads):
            shown = f" {printable(self.calibration)}" if isinstance(self.calibration, Path) else ""
            raise ConfigError(f"--calibration{shown}: no scales are fitted here, and no answers compared; leave it out")

    def _check_network(self, form: Format, network: nn.Module) -> None:
        detects, by_functions = isinstance(network, Detector), self.uses_onnx_functions(network)
        if self.any_size and not by_functions and any(isinstance(module, SS2D) for module in network.modules()):
            raise ConfigError(
                "--size dynamic: a network on a mobilemamba backbone is laid out for one size of pictures; "
                "give it in pixels"
            )
        if by_functions and self.batch is not None and not form.batch_with_any_size:
            raise ConfigError(
                f"--batch {self.batch} with --size dynamic: {form.suffix} files take any number of pictures then; "
                "leave one out"
            )
        if detects and self.any_size:
            raise ConfigError(
                "--size dynamic: a detector's boxes are laid out for one size of pictures; give it in pixels"
            )
        if detects and self.softmax:
            raise ConfigError("--softmax: not for detectors, which answer with probabilities; leave it out")
        if self.nms and not detects:
            raise ConfigError("--nms: only detectors answer with boxes; leave it out")
