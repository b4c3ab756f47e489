"""Runs a network by CUDA graphs: captured once for each size of a batch, then launched by the host in one go."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mobilemamba.errors import ConfigError
from mobilemamba.ops.backends import is_traced

cuda: Any = torch.cuda  # tests replace it
_WARMUPS = 3  # calls before a capture, which compile and choose kernels


class _Captured(NamedTuple):
    graph: Any
    inputs: Tensor  # read by the graph
    outputs: Any  # written by it


class CudaGraphs:
    """Calls functions of one tensor by CUDA graphs, captured at the first call with each shape, dtype and device.

    A smaller batch has another shape and captures its own graph. The input is copied to where the graph reads it, and
    the output is a separate copy, which later calls do not overwrite. Weights, and tensors made of them, are read where
    they were at the capture: call :meth:`clear` after changing them.

    Several threads may call at a time; they wait for each other. Copies and pickles start without graphs.

    Args:
        limit: The most graphs to keep; the least recently used one is dropped first. Each keeps its input and output,
            and all share the memory of intermediate results.
        at_once: Whether to capture in the first call and raise if that fails. Otherwise the second of two successive
            calls of the same kind captures, and a function that cannot be captured is called as it is, with a warning.
    """

    def __init__(self, limit: int = 8, at_once: bool = True) -> None:
        self.limit, self.at_once = limit, at_once
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets all graphs."""
        self._kept: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._pool: Any = None
        self._beside: Any = None  # the stream of captures
        self._used: Any = None  # the stream of the last call
        self._last: Hashable = None
        self._fails = False

    def __len__(self) -> int:
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "at_once": self.at_once}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # as new, without the captured graphs

    def __call__(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Returns ``function(x)``; the function must be the same in every call, and no gradients may be needed.

        Raises:
            ConfigError: If x requires gradients, or the function cannot be captured.
        """
        if is_traced():
            return function(x)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError("a CUDA graph has no gradients; call it under torch.no_grad(), or without cuda_graph")
        with self._lock, cuda.device(x.device):
            captured = self._find(function, x)
            if captured is None:
                return function(x)
            stream = cuda.current_stream()
            if self._used not in (None, stream):
                stream.wait_stream(self._used)  # it may still use the graph's tensors
            self._used = stream
            with torch.inference_mode():
                captured.inputs.copy_(x)
                captured.graph.replay()
            return tree_map_only(Tensor, torch.clone, captured.outputs)

    def _find(self, function: Callable[[Tensor], Any], x: Tensor) -> _Captured | None:
        key = x.shape, x.dtype, x.device
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        again, self._last = self._last == key, key
        if not x.numel() or (not self.at_once and (self._fails or not again)):
            return None
        try:
            while len(self._kept) >= self.limit:
                cuda.synchronize()  # the graph to be dropped may still run
                self._kept.popitem(last=False)
            self._kept[key] = self._capture(function, x)
        except RuntimeError as error:  # also torch.OutOfMemoryError
            cause = error.__context__ or error  # ending a failed capture raises a second error
            reason = str(cause).strip().splitlines()[0]
            if self.at_once:
                raise ConfigError(
                    f"a batch {tuple(x.shape)} cannot be captured as a CUDA graph: {reason}; leave cuda_graph out"
                ) from error
            warnings.warn(f"runs without CUDA graphs: {reason}", stacklevel=4)
            self._fails = True
            return None
        return self._kept[key]

    @torch.inference_mode()
    def _capture(self, function: Callable[[Tensor], Any], x: Tensor) -> _Captured:
        if not self._kept:  # the pool of no graphs may have been freed
            self._pool = cuda.graph_pool_handle()
        self._beside = self._beside or cuda.Stream()
        inputs = x.clone(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
        stream, graph = cuda.current_stream(), cuda.CUDAGraph()
        self._beside.wait_stream(stream)
        with cuda.stream(self._beside):
            for _ in range(_WARMUPS):
                function(inputs)
        stream.wait_stream(self._beside)
        # Loaders in other threads may pin memory meanwhile. A failed capture leaves the side stream as the current one.
        with cuda.stream(stream), cuda.graph(graph, self._pool, self._beside, capture_error_mode="thread_local"):
            outputs = function(inputs)
        return _Captured(graph, inputs, outputs)
