"""What ``torch.cuda`` has for graphs, on a CPU: a capture notes the operations, and a replay does them once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Noting(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = self.graph.waits.total()
        out = func(*args, **(kwargs or {}))
        # As every other size or number that the host is to know.
        if func is torch.ops.aten.nonzero.default or self.graph.waits.total() != waits:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        self.graph.calls.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    def __init__(self, waits: Counter[Any]) -> None:
        self.waits = waits
        self.calls: list[Any] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(*((x if isinstance(x, tuple | list) else [x]) for x in (again, out)), strict=True):
                if isinstance(old, Tensor) and _place(new) != _place(old):  # else a view, or done in place
                    old.copy_(new)


def _place(x: Any) -> int:
    place: int = getattr(x, "held", x).data_ptr()  # of a pretended GPU's tensor, where its numbers are
    return place


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeCuda:
    """To be put in the place of ``graphs.cuda``.

    Args:
        waits: What a pretended GPU makes the host wait for, which no capture may.

    Attributes:
        captured: The graphs, in order.
        log: What was asked of streams and pools.
    """

    def __init__(self, waits: Counter[Any] | None = None) -> None:
        self.waits = Counter() if waits is None else waits
        self.captured: list[FakeGraph] = []
        self.log: list[str] = []
        self.current = FakeStream(self.log, "main")

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802
        return FakeGraph(self.waits)

    def Stream(self) -> FakeStream:  # noqa: N802
        return FakeStream(self.log, "side")

    def current_stream(self) -> FakeStream:
        return self.current

    def graph_pool_handle(self) -> int:
        self.log.append("new pool")
        return len(self.log)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: FakeGraph, pool: int, stream: FakeStream, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        before, self.current = self.current, stream
        try:
            with Noting(graph):
                yield
        except RuntimeError:  # as the end of the capture then does, before the stream is the former one again
            raise RuntimeError("operation failed due to a previous error during capture\nmore lines") from None
        self.current = before
        self.captured.append(graph)
