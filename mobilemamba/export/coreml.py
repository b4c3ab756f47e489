"""Core ML's packages, for iPhones and Macs. They are written anywhere and run on macOS alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from mobilemamba.export.format import INPUT, Format, Source


class CoreMl(Format):
    """See the module."""

    name = "Core ML"
    suffix = ".mlpackage"
    extra = "coreml"
    writes = ("coremltools",)
    reads = ()
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    casts = False

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        import coremltools

        program = source.program
        for node in list(program.graph.nodes):  # which its converter does not know
            if node.op == "call_function" and str(node.target) == "aten.alias.default":
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
        precision = coremltools.precision
        model = coremltools.convert(
            program,
            inputs=[coremltools.TensorType(name=INPUT, shape=tuple(source.example.shape))],
            outputs=[coremltools.TensorType(name=source.answer)],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=precision.FLOAT16 if source.dtype == "float16" else precision.FLOAT32,
        )
        model.user_defined_metadata.update(metadata)
        model.save(str(path))
