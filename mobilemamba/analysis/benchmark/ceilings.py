"""What the machine can do at most, by the simplest operations there are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mobilemamba.analysis.benchmark.cases import DTYPES

#: Sides of the square matrices of the product, and bytes of the copied tensor: far more than the caches hold.
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}


def matrix_product(device: str, dtype: str, side: int | None = None) -> tuple[Callable[[], object], int]:
    """A large square matrix product, and the multiply-adds of a call.

    Args:
        device: torch's name.
        dtype: Key of ``DTYPES``.
        side: Rows and columns of the factors.
    """
    side = side or MATRIX_SIDE.get(torch.device(device).type, 2048)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product), side**3


def memory_copy(device: str, size: int | None = None) -> tuple[Callable[[], object], int]:
    """A large copy, and the bytes of a call: each byte is read once and written once, and counts twice.

    Args:
        device: torch's name.
        size: Bytes of the source.
    """
    size = size or COPIED_BYTES.get(torch.device(device).type, 2**28)
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size
