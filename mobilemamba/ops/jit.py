"""Kernels in Triton, for NVIDIA's GPUs: where they run, and how they are compiled, without need of Triton before."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mobilemamba.ops.backends import Backend

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def compiled(namespace: dict[str, Any], *functions: Callable[..., object]) -> list[Any]:
    """Kernels from plain functions; Triton compiles them when they are first called with tensors of some kind.

    Args:
        namespace: Of their module, ``globals()``: there they find ``tl``, ``constexpr`` and each other.
        functions: Of Triton's language.
    """
    triton, language = import_module("triton"), import_module("triton.language")
    kernels = {function.__name__: triton.jit(function) for function in functions}
    namespace.update(kernels, tl=language, constexpr=language.constexpr)
    return list(kernels.values())


def padded(size: int) -> int:
    """The next power of 2: the size of a tile."""
    return 1 << max(size - 1, 0).bit_length()


def dot_type(dtype: torch.dtype) -> Any:
    """Triton's type of the factors of a matrix product, for tensors of a dtype; its interpreter has no bfloat16."""
    triton, language = import_module("triton"), import_module("triton.language")
    interpreted = dtype == torch.bfloat16 and triton.knobs.runtime.interpret
    return language.float32 if interpreted else getattr(language, _name(dtype))


def why_not_on(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run there, or None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed; it comes with PyTorch for CUDA on Linux"
    if dtype not in _DTYPES:
        return f"its kernels compute in single precision, {_name(dtype)} is not theirs"
    if import_module("triton").knobs.runtime.interpret:
        return None  # the tests, by NumPy
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and its kernels need cuda"
    return _why_no_driver() or _why_too_old(device, dtype)


@cache
def _why_no_driver() -> str | None:
    """Triton compiles a little C for its driver, and so needs a compiler beside the GPU."""
    try:
        import_module("triton.runtime").driver.active.get_current_device()
    except Exception as error:  # whatever it is, e.g. no GPU, no compiler, no Python.h
        return f"Triton cannot reach a GPU ({str(error).strip().splitlines()[-1]})"
    return None


def _why_too_old(device: torch.device, dtype: torch.dtype) -> str | None:
    needed = (8, 0) if dtype == torch.bfloat16 else (7, 5)
    capability = torch.cuda.get_device_capability(device)
    if capability >= needed:
        return None
    return f"its kernels need compute capability {_dots(needed)} for {_name(dtype)}, and this is {_dots(capability)}"


def _dots(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def backend(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    unavailable: Callable[..., str | None] = why_not_on,
) -> Backend:
    """The Triton kernels as a backend of an operation."""
    return Backend("triton", "Triton kernel for NVIDIA's GPUs", forward, backward, "cuda", unavailable)
