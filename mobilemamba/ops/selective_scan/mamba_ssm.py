"""Adapter to mamba-ssm's CUDA kernel (the ``selective_scan_cuda`` extension), for those who have it built.

The extension is probed, not the ``mamba_ssm`` package: the package can be imported without its kernel, and its import
pulls in much that the kernel does not need.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

_MAX_STATE = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def _kernel() -> ModuleType | str:
    """The extension, or the reason it is absent. Any ImportError counts: a wrong ABI shows as an undefined symbol."""
    try:
        return importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        return f"its kernel selective_scan_cuda does not import ({error})"


def why_not(device: torch.device, d_state: int, dtype: torch.dtype) -> str | None:
    """Why the kernel cannot run there, or None if it can."""
    kernel = _kernel()
    if isinstance(kernel, str):
        return f"{kernel}; see 'mamba-ssm' in the README for how to build it"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and the kernel needs cuda"
    if dtype not in _DTYPES:
        return f"its kernel knows no {str(dtype).removeprefix('torch.')}"
    if d_state > _MAX_STATE:
        return f"d_state={d_state} exceeds the kernel's {_MAX_STATE}"
    return None


def _pack(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> tuple[Tensor, ...]:
    """The kernel's contract: directions as groups of channels, one dtype for what varies in time, fp32 for the rest."""
    varying = (dt.flatten(1, 2), B, C)
    fixed = (A.flatten(0, 1), D.flatten(), dt_bias.flatten())
    u = u.flatten(1, 2).contiguous()
    dt, B, C = (x.to(u.dtype).contiguous() for x in varying)
    A, D, dt_bias = (x.float().contiguous() for x in fixed)
    return u, dt, A, B, C, D, dt_bias


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    """The scan; arguments and result as in ``selective_scan``."""
    kernel = _kernel()
    assert isinstance(kernel, ModuleType)
    pu, pdt, pA, pB, pC, pD, pbias = _pack(u, dt, A, B, C, D, dt_bias)
    y, _states = kernel.fwd(pu, pdt, pA, pB, pC, pD, None, pbias, True)[:2]
    return y.reshape(u.shape).contiguous()


def backward(
    grad_y: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of all seven inputs."""
    kernel = _kernel()
    assert isinstance(kernel, ModuleType)
    pu, pdt, pA, pB, pC, pD, pbias = _pack(u, dt, A, B, C, D, dt_bias)
    _, states = kernel.fwd(pu, pdt, pA, pB, pC, pD, None, pbias, True)[:2]
    gy = grad_y.to(pu.dtype).flatten(1, 2).contiguous()
    gu, gdt, gA, gB, gC, gD, gbias = kernel.bwd(
        pu, pdt, pA, pB, pC, pD, None, pbias, gy, states, None, None, True, False
    )[:7]
    inputs = (u, dt, A, B, C, D, dt_bias)
    grads = (gu, gdt, gA, gB, gC, gD, gbias)
    return tuple(g.to(i.dtype).reshape(i.shape).contiguous() for g, i in zip(grads, inputs, strict=True))
