"""OpenVINO files: ``x.xml`` and beside it the weights, ``x.bin``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.export.calibration import whole_batches
from mobilemamba.export.format import INPUT, OUTPUTS_KEY, Format, Source
from mobilemamba.export.onnx import to_onnx
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import PRECISION_KEY, RuntimeNetwork

#: Section of a file's runtime information that holds our metadata.
_SECTION = "mobilemamba"
#: Element-wise operators, which int8 makes slower and less exact.
_STAY_FLOAT = ["Multiply", "Add", "Subtract"]
#: Number of input shapes for which a compiled model is kept.
_SHAPES = 4


class OpenVino(Format):
    """The format of OpenVINO."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    writes = ("openvino",)
    reads = ("openvino",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16", "int8")
    casts = False
    calibrates = True
    any_batch = True
    any_size = True
    suppresses = True
    batch_with_any_size = False  # OpenVINO 2026.4 miscounts the states of a loop whose shape it knows

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        openvino = load_openvino()
        model = to_openvino(source)
        for key, value in metadata.items():
            model.set_rt_info(value, [_SECTION, key])
        openvino.save_model(model, path, compress_to_fp16=source.dtype == "float16")

    def metadata(self, path: Path) -> Mapping[str, str]:
        self.need(self.reads)
        return _metadata_of(self._read(path))

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        model = self._read(path)
        if len(model.inputs) != 1 or model.inputs[0].partial_shape.rank.get_length() != 4:
            raise self.unreadable(path, ValueError("it takes other things than one batch of pictures"))
        return in_openvino(model)

    def load_objects(self, path: Path) -> RuntimeNetwork:
        return in_openvino(self._read(path), output=1)

    def in_memory(self, source: Source) -> RuntimeNetwork:
        return in_openvino(to_openvino(source))

    def _read(self, path: Path) -> Any:
        try:
            with quiet():
                return load_openvino().Core().read_model(path)
        except Exception as error:  # RuntimeError and its own kinds
            raise self.unreadable(path, error) from None


def load_openvino() -> Any:
    """Imports OpenVINO without its telemetry to Intel, for which it has a stub if that package cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not found
    import openvino

    return openvino


def in_openvino(model: Any, *, output: int = 0) -> RuntimeNetwork:
    """Wraps a model of OpenVINO as a network, compiled for each input size, which is twice as fast as a dynamic one."""
    openvino = load_openvino()
    metadata, core = _metadata_of(model), openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if metadata.get(PRECISION_KEY) == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in model.inputs[0].partial_shape)
    # OpenVINO 2026.4 miscounts the states of a loop whose number of steps it knows.
    loops = any(node.get_type_name() == "TensorIterator" for node in model.get_ops())

    @lru_cache(maxsize=_SHAPES)
    def compiled(shape: tuple[int, ...]) -> Any:
        if shape:
            model.reshape(list(shape))
        return core.compile_model(model, "CPU", options)

    def run(batch: np.ndarray) -> np.ndarray:
        network = compiled(() if loops else batch.shape)
        answer = network(batch)[output]
        network.release_memory()  # otherwise it would keep that of every shape
        return answer

    how = f"OpenVINO {openvino.__version__.partition('-')[0]}"
    return RuntimeNetwork(run, sizes, how, probabilities=metadata.get(OUTPUTS_KEY) == "probabilities")


def to_openvino(source: Source) -> Any:
    """Converts the network to a model of OpenVINO, in int8 if chosen.

    Raises:
        ConfigError: If it cannot be converted.
    """
    openvino = load_openvino()
    try:
        # Functions of ONNX are of its exporter alone, and so is the tracing of sizes in the choice of objects.
        model = (
            openvino.Core().read_model(to_onnx(source).SerializeToString())
            if source.onnx_functions or len(source.answers) > 1
            else openvino.convert_model(source.without_ours)
        )
    except RuntimeError as error:
        raise ConfigError(f"OpenVINO cannot convert the network: {' '.join(str(error).split())[:300]}") from None
    model.reshape([-1 if size is None else size for size in source.shape])  # the converter leaves them dynamic
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, source.answers, strict=True):
        output.get_tensor().set_names({name})
    if source.dtype == "int8":
        assert source.calibration is not None
        return _quantized(model, source.calibration.pictures, source.batch or 1)
    return model


def _quantized(model: Any, pictures: torch.Tensor, batch: int) -> Any:
    load_openvino()
    import nncf

    nncf.set_log_level(40)
    data = nncf.Dataset([each.numpy() for each in whole_batches(pictures, batch)])
    return nncf.quantize(
        model, data, subset_size=len(pictures), ignored_scope=nncf.IgnoredScope(types=_STAY_FLOAT, validate=False)
    )


def _metadata_of(model: Any) -> Mapping[str, str]:
    return dict(model.get_rt_info(_SECTION).value) if model.has_rt_info(_SECTION) else {}
