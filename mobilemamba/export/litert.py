"""LiteRT's files (once TensorFlow Lite), for phones and small boards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from mobilemamba.export.beside import WithJson, write_note
from mobilemamba.export.format import OUTPUTS_KEY, Source
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import RuntimeNetwork


class LiteRt(WithJson):
    """See the module; int8 is of weights alone, with activations scaled as they come: no pictures are needed."""

    name = "litert"
    suffix = ".tflite"
    extra = "litert"
    writes = ("litert_torch", "ai_edge_quantizer")
    reads = ("ai_edge_litert",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "int8")

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        import litert_torch

        litert_torch.convert(source.program.module(), (source.example,)).export(str(path))
        if source.dtype == "int8":
            from ai_edge_quantizer import quantizer, recipe

            fitted = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32()).quantize()
            fitted.export_model(str(path), overwrite=True)
        write_note(path, metadata)

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        try:
            with quiet():
                from ai_edge_litert.interpreter import Interpreter

                interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
                interpreter.allocate_tensors()
            (pictures,), answer = interpreter.get_input_details(), interpreter.get_output_details()[0]
        except Exception as error:  # of its own kinds
            raise self.unreadable(path, error) from None

        def run(batch: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(pictures["index"], batch)
            interpreter.invoke()
            return interpreter.get_tensor(answer["index"])

        shape = tuple(int(size) for size in pictures["shape"])
        probabilities = self.metadata(path).get(OUTPUTS_KEY) == "probabilities"
        return RuntimeNetwork(run, shape, "LiteRT", probabilities=probabilities)
