"""ncnn files, for phones: ``x.param`` and beside it the weights, ``x.bin``; its converter pnnx writes them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.export.format import Source
from mobilemamba.export.lowering.side_by_side import side_by_side
from mobilemamba.export.sidecar import SidecarFormat

#: pnnx's names for the input and the output.
_IN, _OUT = "in0", "out0"


class Ncnn(SidecarFormat):
    """The format of ncnn; float16 only applies to the stored weights."""

    name = "ncnn"
    suffix = ".param"
    extra = "ncnn"
    writes = ("pnnx",)
    reads = ("ncnn",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    casts = False
    one_picture = True

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        import pnnx

        with tempfile.TemporaryDirectory() as folder:  # also removes what else pnnx writes
            traced = Path(folder) / "network.pt"
            torch.jit.save(_traced(source), traced)
            shape = ",".join(map(str, source.example.shape))
            files = [f"ncnnparam={path.resolve()}", f"ncnnbin={path.with_suffix('.bin').resolve()}"]
            command = [pnnx.EXEC_PATH, traced.name, f"inputshape=[{shape}]", f"fp16={int(source.dtype == 'float16')}"]
            done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"pnnx fails: {' '.join((done.stderr or done.stdout).split())[-200:]}")
        _check_layers(path)
        self.write_sidecar(path, metadata, source)

    def files(self, path: Path) -> tuple[Path, ...]:
        return path, path.with_suffix(".bin")

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        import ncnn

        net = _read(*self.files(path))

        def run(batch: np.ndarray) -> np.ndarray:
            extractor = net.create_extractor()
            extractor.input(_IN, ncnn.Mat(batch[0]))
            failed, answer = extractor.extract(_OUT)
            if failed:
                raise RuntimeError(f"ncnn cannot compute {_OUT}")
            return np.array(answer)[None]

        return run, f"ncnn {ncnn.__version__}"


def _traced(source: Source) -> torch.jit.ScriptModule:
    """Traces the network for pnnx; from the exported program, whose graph has constant sizes."""
    graph = replace(source, network=side_by_side(source.network)).program.module()
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target == aten._unsafe_view.default:
            node.target = aten.reshape.default
    graph.recompile()
    with torch.no_grad():
        return torch.jit.trace(graph, source.example, check_trace=False)


def _check_layers(path: Path) -> None:
    """Refuses layers that pnnx leaves under PyTorch's names, as ncnn does not have them."""
    layers = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()[2:] if line}
    if unknown := sorted(layer for layer in layers if not layer.isalnum()):
        raise ConfigError(f"ncnn has no layer for {', '.join(unknown)} of this network; choose another format")


def _read(layers: Path, weights: Path) -> Any:
    import ncnn

    net = ncnn.Net()
    options = net.opt
    options.num_threads = torch.get_num_threads()
    options.use_vulkan_compute = options.use_fp16_packed = options.use_fp16_storage = False
    options.use_fp16_arithmetic = options.use_bf16_storage = False
    for read, file in ((net.load_param, layers), (net.load_model, weights)):
        if read(str(file)):
            raise ValueError(f"ncnn does not take {file.name}")
    return net
