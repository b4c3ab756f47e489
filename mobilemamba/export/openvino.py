"""OpenVINO's files: ``x.xml`` and beside it the weights, ``x.bin``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.export.format import INPUT, OUTPUTS_KEY, Format, Source
from mobilemamba.export.onnx import to_onnx
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import PRECISION_KEY, RuntimeNetwork

#: Where a file has what we say of it.
_SECTION = "mobilemamba"
#: Element-wise operators, which int8 makes slower and less exact.
_STAY_FLOAT = ["Multiply", "Add", "Subtract"]
#: Shapes of pictures that are kept compiled.
_SHAPES = 4


class OpenVino(Format):
    """See the module."""

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

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        openvino = load_openvino()
        model = to_openvino(source)
        for key, value in metadata.items():
            model.set_rt_info(value, [_SECTION, key])
        openvino.save_model(model, path, compress_to_fp16=source.dtype == "float16")

    def metadata(self, path: Path) -> Mapping[str, str]:
        self.need(self.reads)
        return _said(self._read(path))

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        model = self._read(path)
        if len(model.inputs) != 1 or model.inputs[0].partial_shape.rank.get_length() != 4:
            raise self.unreadable(path, ValueError("it takes other things than one batch of pictures"))
        return in_openvino(model)

    def in_memory(self, source: Source) -> RuntimeNetwork:
        return in_openvino(to_openvino(source))

    def _read(self, path: Path) -> Any:
        try:
            with quiet():
                return load_openvino().Core().read_model(path)
        except Exception as error:  # RuntimeError, and others of its own
            raise self.unreadable(path, error) from None


def load_openvino() -> Any:
    """The package, which reports its use to Intel unless that part of it cannot be imported; then it has a stub."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: is not to be found
    import openvino

    return openvino


def in_openvino(model: Any) -> RuntimeNetwork:
    """A model of OpenVINO's as a network, compiled for each size of its input: that is twice as fast as a free one."""
    openvino = load_openvino()
    said, core = _said(model), openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if said.get(PRECISION_KEY) == "bfloat16" else "f32",
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
        answer = network(batch)[0]
        network.release_memory()  # else it would hold that of every shape
        return answer

    how = f"OpenVINO {openvino.__version__.partition('-')[0]}"
    return RuntimeNetwork(run, sizes, how, probabilities=said.get(OUTPUTS_KEY) == "probabilities")


def to_openvino(source: Source) -> Any:
    """The network as a model of OpenVINO's, in int8 where that is asked for.

    Raises:
        ConfigError: If it cannot be converted.
    """
    openvino = load_openvino()
    try:
        # A form for any size has operators of ONNX's.
        model = (
            openvino.Core().read_model(to_onnx(source).SerializeToString())
            if source.free
            else openvino.convert_model(source.program)
        )
    except RuntimeError as error:
        raise ConfigError(f"OpenVINO cannot convert the network: {' '.join(str(error).split())[:300]}") from None
    model.reshape([-1 if size is None else size for size in source.shape])  # which the converter leaves open
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({source.answer})
    if source.dtype == "int8":
        assert source.calibration is not None
        return _quantized(model, source.calibration.pictures, source.batch or 1)
    return model


def _quantized(model: Any, pictures: torch.Tensor, batch: int) -> Any:
    load_openvino()
    import nncf

    nncf.set_log_level(40)
    missing = pictures[:1].expand(-len(pictures) % batch, *pictures.shape[1:])  # from whole batches
    batches = [some.numpy() for some in torch.cat([pictures, missing]).split(batch)]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(types=_STAY_FLOAT, validate=False),
    )


def _said(model: Any) -> Mapping[str, str]:
    return dict(model.get_rt_info(_SECTION).value) if model.has_rt_info(_SECTION) else {}
