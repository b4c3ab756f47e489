"""Quantises ONNX models to 8 bits in a way that ONNX Runtime runs fast."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilemamba.export.calibration import whole_batches
from mobilemamba.export.format import INPUT
from mobilemamba.export.quiet import load_onnxruntime, quiet

#: Convolutions with fewer weights stay float, as converting their input takes longer than they do.
_FEW_WEIGHTS = 1024


def quantized(model: Any, pictures: torch.Tensor, path: Path) -> Any:
    """Returns the model with 8-bit products; all else stays float, where 8 bits cost more than they gain.

    Activations are unsigned. If several operators read a signed one, ONNX Runtime converts only one side of a
    convolution for its kernels, and then computes it in float between conversions. A ReLU between two products is part
    of the conversion, which clips: the quantizer removes it if it is listed.
    """
    import onnx

    onnxruntime = load_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
            self.batches = whole_batches(pictures, batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    # Norms that only ONNX Runtime folds would otherwise stand between a convolution and the conversion of its output.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # failures are raised, too
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    with quiet():
        quantize_static(
            model,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu", "Clip"],
            nodes_to_exclude=_stay_float(model.graph),
        )
    return onnx.load(path)


def _stay_float(graph: Any) -> list[str]:
    """Returns the names of products that 8 bits do not make faster.

    These are convolutions with few weights; depthwise ones whose output is multiplied, as in SiLU and gates, because
    that happens in float and needs conversions around little work; and products of matrices that are not weights.
    """
    shapes = {weights.name: tuple(weights.dims) for weights in graph.initializer}
    multiplied = {name for node in graph.node if node.op_type == "Mul" for name in node.input}
    names = []
    for node in graph.node:
        shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
        if node.op_type == "Conv":
            apart = any(entry.name == "group" and entry.i > 1 for entry in node.attribute)
            stays = node.output[0] in multiplied if apart else math.prod(shape) < _FEW_WEIGHTS
        else:
            stays = node.op_type == "MatMul" and len(shape) != 2
        if stays:
            names.append(node.name)
    return names
