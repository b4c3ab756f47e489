"""ExecuTorch's files, for phones: XNNPACK computes what it can, ExecuTorch's own operators the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mobilemamba.export.beside import WithJson, write_note
from mobilemamba.export.format import OUTPUTS_KEY, Source
from mobilemamba.export.quiet import quiet
from mobilemamba.models.runtime import RuntimeNetwork


class ExecuTorch(WithJson):
    """See the module."""

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
        write_note(path, {**metadata, "shape": "x".join(map(str, source.shape))})

    def load(self, path: Path) -> RuntimeNetwork:
        self.need(self.reads)
        said = self.metadata(path)
        try:
            with quiet():
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime

                portable_lib._unsafe_reset_threadpool(torch.get_num_threads())  # of the whole process, and no other way
                program = Runtime.get().load_program(path.read_bytes())
                loaded = program, program.load_method("forward")
            shape = tuple(int(size) for size in said["shape"].split("x"))
        except Exception as error:  # of its own kinds
            raise self.unreadable(path, error) from None

        def run(batch: np.ndarray) -> np.ndarray:
            _, method = loaded  # which reads the bytes that the program holds
            return method.execute([torch.from_numpy(batch)])[0].numpy().copy()

        return RuntimeNetwork(run, shape, "ExecuTorch", probabilities=said.get(OUTPUTS_KEY) == "probabilities")
