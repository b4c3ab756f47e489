"""Triton kernels for NVIDIA's GPUs: where they can run, and how they are compiled; imports Triton only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from mobilemamba.ops.backends import Backend

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Arguments not to specialise on: Triton would compile again where one is 1 or a multiple of 16, without any gain.
_COUNTS = {"pictures", "height", "width", "y_height", "y_width", "length"}
#: Launches that ``noting_launches`` records instead of running them; None outside it.
_noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] | None = None


def compiled(namespace: dict[str, Any], *functions: Callable[..., object]) -> list[Any]:
    """Makes kernels of plain functions; Triton compiles one when it is first called with tensors of some kind.

    Args:
        namespace: ``globals()`` of their module, where they find ``tl``, ``constexpr`` and each other.
        functions: Functions written in Triton's language.
    """
    triton, language = import_module("triton"), import_module("triton.language")
    kernels = {f.__name__: triton.jit(f, do_not_specialize=_counts(f)) for f in functions}
    namespace.update(kernels, tl=language, constexpr=language.constexpr)
    return list(kernels.values())


def _counts(function: Callable[..., object]) -> list[str]:
    return [name for name in signature(function).parameters if name in _COUNTS]


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel on the device of its first argument, which is a tensor."""
    if _noted is not None:
        _noted.append((kernel, tuple(map(_by_kind, arguments)), constants))
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


class _Pointer:
    """What the compiler needs to know about a tensor, without keeping the tensor."""

    def __init__(self, x: Tensor):
        self.dtype, self.place = x.dtype, x.data_ptr() % 16

    def data_ptr(self) -> int:
        return self.place


def _by_kind(value: Any) -> Any:
    return _Pointer(value) if isinstance(value, Tensor) else value


@contextmanager
def noting_launches() -> Iterator[dict[object, Callable[[], Any]]]:
    """Context that records launches of kernels instead of running them; their outputs stay as they are.

    Yields:
        A dictionary that, at the end, has a function for each kernel and kind of arguments. The function compiles that
        kernel for the current device, and may be called in any thread.
    """
    global _noted
    compilations = dict[object, Callable[[], Any]]()
    noted = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]()
    _noted = noted
    try:
        yield compilations
    finally:
        _noted = None
    for kernel, arguments, constants in noted:
        kind = _kind(kernel, arguments, constants)
        compilations[kind] = partial(kernel.warmup, *arguments, grid=(1,), **constants)


def _kind(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[object, ...]:
    """Returns a key of all that a kernel is compiled for: the kernel, its constants and the kinds of its arguments."""
    kinds: list[object] = [kernel, *constants.values()]
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, _Pointer):
            kinds.append((value.dtype, value.place))
        elif isinstance(value, int) and name not in _COUNTS:
            kinds.append((value == 1, value % 16 == 0))
    return tuple(kinds)


def padded(size: int) -> int:
    """Returns the smallest power of 2 that is not below a size: the size of a tile."""
    return 1 << max(size - 1, 0).bit_length()


def dot_type(dtype: torch.dtype) -> Any:
    """Returns Triton's dtype of a matrix product's factors for a tensor dtype; its interpreter has no bfloat16."""
    triton, language = import_module("triton"), import_module("triton.language")
    interpreted = dtype == torch.bfloat16 and triton.knobs.runtime.interpret
    return language.float32 if interpreted else getattr(language, _name(dtype))


def why_not_on(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why the kernels cannot run on the device in the dtype, or None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed; it comes with PyTorch for CUDA on Linux"
    if dtype not in _DTYPES:
        return f"its kernels compute in single precision, not in {_name(dtype)}"
    if import_module("triton").knobs.runtime.interpret:
        return None  # in the tests, which interpret the kernels with NumPy
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and its kernels need cuda"
    return _why_no_driver() or _why_too_old(device, dtype)


@cache
def _why_no_driver() -> str | None:
    """Triton compiles a little C for its driver, and so needs a C compiler on the machine with the GPU."""
    try:
        import_module("triton.runtime").driver.active.get_current_device()
    except Exception as error:  # of any kind: no GPU, no compiler, no Python.h
        return f"Triton cannot reach a GPU ({(str(error).strip() or type(error).__name__).splitlines()[-1]})"
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
    """Returns Triton kernels as a backend of an operation."""
    return Backend("triton", "Triton kernel for NVIDIA's GPUs", forward, backward, "cuda", unavailable)
