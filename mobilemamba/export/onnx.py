"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mobilemamba.export.format import INPUT, OUTPUTS_KEY, Format, Source
from mobilemamba.export.lowering.onnx_functions import with_functions
from mobilemamba.export.onnx_int8 import quantized
from mobilemamba.export.quiet import load_onnxruntime, quiet
from mobilemamba.models.runtime import RuntimeNetwork

#: The newest opset that older runtimes support, too.
_OPSET = 20


class Onnx(Format):
    """The format of ONNX."""

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
    opsets = range(18, 25)  # from the oldest one that the exporter writes

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
        except Exception as error:  # its own exceptions, which are not public
            raise self.unreadable(path, error) from None


def _session(model: str | bytes, *, quick: bool = False) -> Any:
    """Opens ONNX Runtime's session of a file or its content; a quick one must not be run."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # it would keep the largest batch's memory to save 2 % of the time
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads need the processor, too
    options.log_severity_level = 4  # failures are raised, too
    if quick:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
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
    """Converts the network to ONNX's ``ModelProto``, without the exporter's notes on source files.

    Raises:
        ConfigError: If the network cannot be traced.
    """
    opset = source.opset or _OPSET
    with quiet():
        exported = torch.onnx.export(
            source.without_ours,
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
    if source.onnx_functions:
        model = with_functions(model, opset)
    _name_sizes(model.graph, source)
    return model


def _tidy(model: Any) -> None:
    """Folds constants, and no more, because runtimes optimise graphs, too, and the exporter would take minutes."""
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


def _strip(model: Any) -> None:
    """Removes the exporter's notes: paths and lines of source files, names of modules."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]  # shapes, which runtimes infer
    nodes = [node for owner in (graph, *model.functions) for node in owner.node]
    for entry in (graph, *nodes, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del entry.metadata_props[:]
        entry.doc_string = ""


def _name_sizes(graph: Any, source: Source) -> None:
    """Names the dynamic sizes by their meaning."""
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {}
    for dim, size, name in zip(dims, source.shape, ("batch", "channels", "height", "width"), strict=True):
        if size is None:
            names[dim.dim_param] = name
            dim.dim_param = name  # replaces the size traced with functions of ONNX
    for entry in (*graph.input, *graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
