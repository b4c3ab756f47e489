"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mobilemamba.export.calibration import whole_batches
from mobilemamba.export.form.free import with_functions
from mobilemamba.export.format import INPUT, OUTPUTS_KEY, Format, Source
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import RuntimeNetwork

#: The newest opset that older runtimes know as well.
_OPSET = 20
#: Convolutions of fewer weights stay float in int8: to convert what they read takes longer than they do.
_FEW_WEIGHTS = 1024


class Onnx(Format):
    """See the module."""

    name = "onnxruntime"
    suffix = ".onnx"
    extra = "onnx"
    writes = ("onnx", "onnxscript", "onnxruntime")
    reads = ("onnxruntime",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")
    calibrates = True
    any_batch = True
    any_size = True
    suppresses = True
    opsets = range(18, 25)  # from the oldest that the exporter writes

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        import onnx

        model = to_onnx(source)
        if source.dtype == "int8":
            assert source.calibration is not None
            model = quantized(model, source.calibration.pictures, path)
        onnx.helper.set_model_props(model, dict(metadata))
        path.write_bytes(model.SerializeToString())

    def metadata(self, path: Path) -> Mapping[str, str]:
        self.need(self.reads)
        return self._session(path, quick=True).get_modelmeta().custom_metadata_map

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        session = self._session(path)
        inputs = session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            reason = f"it takes {[entry.name for entry in inputs]}, and not one batch of pictures alone"
            raise self.unreadable(path, ValueError(reason))
        return _in_onnxruntime(session)

    def load_objects(self, path: Path) -> RuntimeNetwork:
        return _in_onnxruntime(self._session(path), output=1)

    def in_memory(self, source: Source) -> RuntimeNetwork:
        return _in_onnxruntime(_session(to_onnx(source).SerializeToString()))

    def _session(self, path: Path, *, quick: bool = False) -> Any:
        try:
            return _session(str(path), quick=quick)
        except Exception as error:  # its own classes, which it does not name in public
            raise self.unreadable(path, error) from None


def load_onnxruntime() -> Any:
    """The package, which reports its use to Microsoft, and keeps a number for this machine, unless told otherwise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # which it reads as it is imported
    import onnxruntime

    return onnxruntime


def _session(model: str | bytes, *, quick: bool = False, folded: Path | None = None) -> Any:
    """ONNX Runtime's session of a file or its content; a quick one is not to be run.

    Args:
        folded: Where to write the model after the rewrites that are right for every processor; no others are done then.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # which would hold the memory of the largest batch, for 2 % of the time
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others want the processor as well
    options.log_severity_level = 4  # what fails is raised as well
    if quick:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folded is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _in_onnxruntime(session: Any, *, output: int = 0) -> RuntimeNetwork:
    pictures, answer = session.get_inputs()[0], session.get_outputs()[output]

    def run(batch: np.ndarray) -> np.ndarray:
        return session.run([answer.name], {pictures.name: batch})[0]

    shape = tuple(size if isinstance(size, int) else None for size in pictures.shape)
    outputs = session.get_modelmeta().custom_metadata_map.get(OUTPUTS_KEY)
    how = f"ONNX Runtime {load_onnxruntime().__version__}"
    return RuntimeNetwork(run, shape, how, probabilities=outputs == "probabilities")


def to_onnx(source: Source) -> Any:
    """The network as ONNX's ``ModelProto``, without the exporter's notes on source files.

    Raises:
        ConfigError: If the network cannot be followed.
    """
    opset = source.opset or _OPSET
    with quiet():
        # The exporter has a pass of its own for PyTorch's operators: one for ours alone would cost a third more.
        ours = any("mobilemamba" in str(node.target) for node in source.traced.graph.nodes)
        exported = torch.onnx.export(
            source.program if ours else source.traced,
            (source.example,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(source.answers),
            optimize=False,
        )
        assert exported is not None
        _tidy(exported.model)
        model = exported.model_proto
    _strip(model)
    if source.free:
        model = with_functions(model, opset)
    _name_sizes(model.graph, source)
    return model


def _tidy(model: Any) -> None:
    """Computes what is constant, once; no more, as runtimes rewrite graphs too, and the exporter takes minutes."""
    from onnx_ir import passes
    from onnxscript.optimizer import fold_constants

    common = passes.common
    fold_constants(model)
    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    )(model)


def quantized(model: Any, pictures: torch.Tensor, path: Path) -> Any:
    """The model with 8-bit products; all else stays float, where 8 bits cost more than they bring.

    Activations are unsigned: of signed ones that several operators read, ONNX Runtime converts one side of a
    convolution alone to what its kernels take, and then computes it as floats between conversions. A ReLU between two
    products is in the conversion, which clips: the quantizer removes it where it is told of it.
    """
    import onnx

    load_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
            self.batches = whole_batches(pictures, batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    # What folds only there, as some norms, would else stand between a convolution and the conversion of its answer.
    _session(model.SerializeToString(), folded=path)
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
    """Names of the products that eight bits make no faster.

    Convolutions of few weights; depthwise ones whose answer is multiplied, as SiLU and gates do, which is as floats and
    so takes a conversion on either side of little work; and products of matrices that are not weights.
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


def _strip(model: Any) -> None:
    """Removes what the exporter noted: paths and lines of source files, names of modules."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]  # shapes, which runtimes find themselves
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def _name_sizes(graph: Any, source: Source) -> None:
    """Calls sizes that are free by what they are."""
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {}
    for dim, size, name in zip(dims, source.shape, ("batch", "channels", "height", "width"), strict=True):
        if size is None:
            names[dim.dim_param] = name
            dim.dim_param = name  # the tracer's number, where the form is free
    for entry in (*graph.input, *graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
