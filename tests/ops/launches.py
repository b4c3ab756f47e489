"""Launches of Triton's kernels without a GPU: noted, compiled for one, and run as compiled by ``ptx``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilemamba.ops import jit
from tests.ops.ptx.machine import Machine
from tests.ops.ptx.memory import Segment
from tests.ops.ptx.program import parse

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Launch(NamedTuple):
    """A kernel and what it is called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    num_warps: int
    constants: dict[str, Any]


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Within it kernels do nothing but to be listed."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        launches.append(Launch(kernel, grid, arguments, num_warps, constants))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "launch", note)
        yield launches


@contextmanager
def launches_by_ptx(capability: int) -> Iterator[list[Machine]]:
    """Within it kernels that get the CPU's tensors run as compiled for a GPU, by machines that are listed."""
    machines: list[Machine] = []

    def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        if all(grid):  # as Triton does
            machines.append(run_as_compiled(Launch(kernel, grid, arguments, num_warps, constants), capability))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "launch", run)
        patch.setattr(jit, "why_not_on", lambda *_: None)
        yield machines


def compiled(launch: Launch, capability: int) -> Any:
    """A kernel compiled for a GPU, specialised as a launch there does."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = {int: "i32", float: "fp32"}
    signature, constants, attributes = {}, dict(launch.constants), {}
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        signature[name] = _POINTERS[value.dtype] if isinstance(value, Tensor) else types[type(value)]
        if name in launch.kernel.do_not_specialize:
            continue
        if isinstance(value, int) and value == 1:
            constants[name] = value
        elif not isinstance(value, float) and (value.data_ptr() if isinstance(value, Tensor) else value) % 16 == 0:
            attributes[i,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": launch.num_warps})


def run_as_compiled(launch: Launch, capability: int) -> Machine:
    """Runs a launch on tensors of the CPU."""
    kernel = compiled(launch, capability)
    program = parse(kernel.asm["ptx"])
    left = zip(launch.kernel.arg_names, launch.arguments, strict=False)
    arguments = [value for name, value in left if kernel.src.signature[name] != "constexpr"]
    numbers = [_bits(value) for value in arguments]
    numbers += [0] * (len(program.parameters) - len(numbers))  # the compiler's own, for memory that we do not use
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in arguments if isinstance(x, Tensor)}
    segments = [
        Segment(start, torch.empty(0, dtype=torch.uint8).set_(storage).numpy()) for start, storage in storages.items()
    ]
    machine = Machine(program, launch.grid, launch.num_warps, numbers, kernel.metadata.shared)
    with np.errstate(all="ignore"):
        machine.run(segments)
    return machine


def _bits(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value
