"""Adapter to mamba-ssm's CUDA kernel (the ``selective_scan_cuda`` extension), for machines where it is built.

The extension is probed, not the ``mamba_ssm`` package: the package can be imported without its kernel, and its import
pulls in much that the kernel does not need.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mobilemamba.ops.backends import Backend
from mobilemamba.ops.scan_order import by_position, by_step
from mobilemamba.ops.selective_scan.definition import ScanInputs

_MAX_STATE = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def _kernel() -> ModuleType | str:
    """Returns the extension, or why it is missing. Any ImportError counts: a wrong ABI shows as an undefined symbol."""
    try:
        return importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        return f"its kernel selective_scan_cuda does not import ({error})"


def unavailable(device: torch.device, dtype: torch.dtype, d_state: int = 1) -> str | None:
    """Returns why the kernel cannot run on the device in the dtype, or None if it can."""
    kernel = _kernel()
    if isinstance(kernel, str):
        return f"{kernel}; see docs/mamba_ssm.md for how to build it"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and the kernel needs cuda"
    if dtype not in _DTYPES:
        return f"its kernel knows no {str(dtype).removeprefix('torch.')}"
    if d_state > _MAX_STATE:
        return f"d_state={d_state} exceeds the kernel's {_MAX_STATE}"
    return None


def _pack(x: ScanInputs, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Lays out inputs for the kernel: directions as groups of channels; u, dt, B, C in u's dtype, the rest in fp32."""
    u, dt, B, C = (s.to(x.u.dtype).permute(1, 2, 3, 0).contiguous() for s in x.by_step(size))
    A, D, dt_bias = (s.float().contiguous() for s in (x.A.flatten(0, 1), x.D.flatten(), x.dt_bias.flatten()))
    return u.flatten(1, 2), dt.flatten(1, 2), A, B, C, D, dt_bias


def forward(x: ScanInputs, size: Sequence[int]) -> Tensor:
    """Scans by position."""
    kernel = _kernel()
    assert isinstance(kernel, ModuleType)
    u, dt, A, B, C, D, dt_bias = _pack(x, size)
    y, _states = kernel.fwd(u, dt, A, B, C, D, None, dt_bias, True)[:2]
    return x.merge(by_position(y.unflatten(1, x.D.shape).permute(3, 0, 1, 2), size))


def backward(grad_y: Tensor, x: ScanInputs, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Returns the gradients of all seven inputs."""
    kernel = _kernel()
    assert isinstance(kernel, ModuleType)
    u, dt, A, B, C, D, dt_bias = _pack(x, size)
    _, states = kernel.fwd(u, dt, A, B, C, D, None, dt_bias, True)[:2]
    gy = by_step(grad_y.to(u.dtype), len(x.A), size).permute(1, 2, 3, 0).contiguous().flatten(1, 2)
    grads = kernel.bwd(u, dt, A, B, C, D, None, dt_bias, gy, states, None, None, True, False)
    gu, gdt, gA, gB, gC, gD, gbias = grads[:7]
    gu, gdt = (g.unflatten(1, x.D.shape) for g in (gu, gdt))
    gu, gdt, gB, gC = (by_position(g.permute(3, 0, 1, 2), size) for g in (gu, gdt, gB, gC))
    return x.merge(gu), gdt, gA.view_as(x.A), gB, gC, gD.view_as(x.D), gbias.view_as(x.D)


BACKEND = Backend("mamba_ssm", "mamba-ssm's CUDA kernel", forward, backward, "cuda", unavailable)
