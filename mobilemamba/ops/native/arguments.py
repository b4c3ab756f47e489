"""Hands tensors to the compiled kernels: pointers and strides of channels-last memory in a dtype they read."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError

#: The values of ``dtype`` in simd.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


def kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which the kernels read and write tensors of a dtype.

    Raises:
        ConfigError: If it would be less precise, as for float64.
    """
    if dtype == torch.float64:
        raise ConfigError("the compiled kernels compute in single precision; give them torch.float32, not float64")
    return dtype if dtype in DTYPE_CODES else torch.float32


def lay_out(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns x in a dtype that the kernels read, with adjacent channels (last dimension) and no overlaps."""
    x = x.to(dtype)
    as_it_is = x.is_contiguous() or (x.stride(-1) == 1 and not _overlaps(x))
    return x if as_it_is else x.contiguous()


def _overlaps(x: Tensor) -> bool:
    """Returns whether two elements may share memory, as after ``expand`` or ``unfold``."""
    extent = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride < extent:
            return True
        extent += (size - 1) * stride
    return False
