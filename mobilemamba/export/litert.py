"""LiteRT files (formerly TensorFlow Lite), for phones and small boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from mobilemamba.export.format import Source
from mobilemamba.export.sidecar import SidecarFormat


class LiteRt(SidecarFormat):
    """The format of LiteRT; int8 is for weights only, with activations scaled at run time, so it needs no pictures."""

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
            _quantize(path)
        self.write_sidecar(path, metadata, source)

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
        pictures, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

        def run(batch: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(pictures["index"], batch)
            interpreter.invoke()
            return interpreter.get_tensor(answer["index"])

        return run, "LiteRT"


def _quantize(path: Path) -> None:
    """Stores a file's weights in 8 bits, except factors of batched matrix products.

    LiteRT takes a constant left factor of one, such as an inverse wavelet transform, only in float. The others are the
    scans' small projections, for which 8 bits would save 3 % of the size.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    model = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32())
    product, as_it_is = qtyping.TFLOperationName.BATCH_MATMUL, algorithm_manager.AlgorithmName.NO_QUANTIZE
    model.update_quantization_recipe(".*", product, algorithm_key=as_it_is)
    model.quantize().export_model(str(path), overwrite=True)
