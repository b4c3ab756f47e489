"""Core ML packages, for iPhones and Macs. They can be written anywhere, but run on macOS and iOS only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from mobilemamba.errors import WeightsError
from mobilemamba.export.format import INPUT, Format, Source
from mobilemamba.text import printable


class CoreMl(Format):
    """The format of Core ML."""

    name = "Core ML"
    suffix = ".mlpackage"
    extra = "coreml"
    writes = ("coremltools",)
    reads = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    casts = False

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        import coremltools

        precision = coremltools.precision
        model = coremltools.convert(
            source.program,
            inputs=[coremltools.TensorType(name=INPUT, shape=tuple(source.example.shape))],
            outputs=[coremltools.TensorType(name=source.answer)],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=precision.FLOAT16 if source.dtype == "float16" else precision.FLOAT32,
        )
        model.user_defined_metadata.update(metadata)
        model.save(str(path))

    def metadata(self, path: Path) -> Mapping[str, str]:
        raise WeightsError(f"{printable(path)} runs in Core ML, on macOS and iOS alone; give the weights it is of")
