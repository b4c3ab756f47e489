"""ExecuTorch's files, for phones: XNNPACK computes what it can, ExecuTorch's own operators the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mobilemamba.export.beside import WithJson, write_note
from mobilemamba.export.format import OUTPUTS_KEY, Source
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
        from executorch.runtime import Runtime

        said = self.metadata(path)
        try:
            method = Runtime.get().load_program(path).load_method("forward")
            assert method is not None
            shape = tuple(int(size) for size in said["shape"].split("x"))
        except Exception as error:  # of its own kinds
            raise self.unreadable(path, error) from None

        def run(batch: np.ndarray) -> np.ndarray:
            return method.execute([torch.from_numpy(batch)])[0].numpy().copy()

        return RuntimeNetwork(run, shape, "ExecuTorch", probabilities=said.get(OUTPUTS_KEY) == "probabilities")
