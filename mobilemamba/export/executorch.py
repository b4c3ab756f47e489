"""ExecuTorch files, for phones: XNNPACK computes what it can, and ExecuTorch's own operators the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from mobilemamba.export.format import Source
from mobilemamba.export.sidecar import SidecarFormat


class ExecuTorch(SidecarFormat):
    """The format of ExecuTorch."""

    name = "executorch"
    suffix = ".pte"
    extra = "executorch"
    writes = ("executorch",)
    reads = ("executorch",)

    def write(self, source: Source, metadata: Mapping[str, str], path: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(source.program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
        self.write_sidecar(path, metadata, source)

    def open(self, path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())  # of the whole process; there is no other way
        program = Runtime.get().load_program(path.read_bytes())
        loaded = program, program.load_method("forward")

        def run(batch: np.ndarray) -> np.ndarray:
            _, method = loaded  # keeps the program alive, whose bytes the method reads
            return method.execute([torch.from_numpy(batch)])[0].numpy().copy()

        return run, "ExecuTorch"
