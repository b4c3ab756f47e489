"""Upper limits of a machine's speed, measured by a matrix product and a memory copy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mobilemamba.analysis.benchmark.cases import DTYPES
from mobilemamba.analysis.timing import clock_of, interleave
from mobilemamba.ops import onednn

#: Sides of the square matrices, and bytes of the copied tensor: far larger than the caches.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}


def matrix_product(device: str, dtype: str, side: int | None = None) -> tuple[Callable[[], object], int]:
    """Returns a function that computes a large square matrix product, and the multiply-adds of a call.

    On a CPU it uses oneDNN if that is faster than the linear algebra library, which leaves half of a machine idle if it
    does not use the widest instructions: a network's convolutions, by oneDNN, could then exceed this ceiling.

    Args:
        device: torch's name of the device.
        dtype: Key of ``DTYPES``.
        side: Rows and columns of the factors.
    """
    of_device = torch.device(device)
    by_onednn = onednn.unavailable(of_device, DTYPES[dtype]) is None
    if side is None:
        side = MATRIX_SIDE.get(of_device.type, 2048)
        if of_device.type == "cpu" and dtype == "float16" and not by_onednn:
            side //= 4  # PyTorch's own loops would take half a minute, and at a lower rate
    generator = torch.Generator(device).manual_seed(0)  # on a GPU at once, but a second on a CPU
    left, right = (torch.randn(side, side, generator=generator, device=device).to(DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(left)
    runs: list[Callable[[], object]] = [lambda: torch.mm(left, right, out=product)]
    if by_onednn:
        packed = onednn.pack_linear(right.T)
        runs.append(lambda: onednn.linear(left, packed, None, "none"))
    return _fastest(runs, device), side**3


def memory_copy(device: str, size: int | None = None) -> tuple[Callable[[], object], int]:
    """Returns a function that copies a large tensor, and the bytes moved by a call: each byte counts as read and write.

    Args:
        device: torch's name of the device.
        size: Bytes of the source.
    """
    size = size or COPIED_BYTES.get(torch.device(device).type, 2**28)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size


def _fastest(runs: list[Callable[[], object]], device: str) -> Callable[[], object]:
    """Returns the function that is fastest in a short interleaved trial."""
    if len(runs) == 1:
        return runs[0]
    clocks = {number: clock_of(run, device) for number, run in enumerate(runs)}
    timings, _ = interleave(clocks, rounds=3, seconds=0.05, warmup=0.05)
    return runs[min(timings, key=lambda number: timings[number].median)]
