"""Loads the compiled kernels once, when they are first used."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from mobilemamba.errors import BackendUnavailableError
from mobilemamba.ops.backends import Backend
from mobilemamba.ops.native.build import LIBRARY, fingerprint
from mobilemamba.ops.native.structures import STRUCTURES

_REBUILD = "python -m mobilemamba.ops.native"
_REMEDY = f"install gcc or clang, then: {_REBUILD}"


@cache
def _load() -> ctypes.CDLL | str:
    """Returns the library, or why it cannot be used."""
    if os.environ.get("MOBILEMAMBA_NATIVE", "1") == "0":
        return "switched off by MOBILEMAMBA_NATIVE=0"
    if not LIBRARY.exists():
        return f"not compiled; {_REMEDY}"
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        compiled_from = ctypes.c_char_p(ctypes.addressof(ctypes.c_char.in_dll(loaded, "mobilemamba_fingerprint"))).value
    except (OSError, ValueError) as error:
        return f"cannot be loaded: {error}"
    if compiled_from != fingerprint().encode():
        return f"compiled from other sources; {_REMEDY}"
    for name, structure in STRUCTURES.items():
        size = ctypes.c_int64.in_dll(loaded, f"mobilemamba_size_of_{name}").value
        if size != ctypes.sizeof(structure):
            return f"compiled with {size} bytes of {name}, where Python has {ctypes.sizeof(structure)}; {_REMEDY}"
    return loaded


def why_not() -> str | None:
    """Returns why the compiled kernels cannot be used, or None if they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def why_not_on(device: torch.device, dtype: torch.dtype, **_: object) -> str | None:
    """Returns why the compiled kernels cannot run on the device in the dtype, or None if they can."""
    if device.type != "cpu":
        return f"the compiled kernels are for the CPU, not for {device.type}"
    if dtype == torch.float64:
        return "the compiled kernels compute in single precision"
    return why_not()


def backend(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    unavailable: Callable[..., str | None] = why_not_on,
) -> Backend:
    """Returns a compiled kernel as a backend of an operation."""
    return Backend("native", "compiled CPU kernel", forward, backward, "cpu", unavailable)


def why_one_thread() -> str | None:
    """Returns why the compiled kernels run in only one thread whatever torch is set to, or None if that is not so."""
    loaded = _load()
    if isinstance(loaded, str) or ctypes.c_int.in_dll(loaded, "mobilemamba_openmp").value:
        return None
    return f"their compiler had no OpenMP; install gcc, or clang with libomp, then: {_REBUILD}"


def call(function: str, arguments: ctypes.Structure) -> None:
    """Calls a function of the library, which writes its results where its arguments say.

    Raises:
        BackendUnavailableError: If the compiled kernels cannot be used, e.g. in a network exported on another machine.
        MemoryError: If the function cannot allocate memory for intermediate results.
    """
    if getattr(_library(), function)(ctypes.byref(arguments)):
        raise MemoryError(f"{function}: no memory for its intermediate results; use smaller batches or pictures")


def scratch(function: str, arguments: ctypes.Structure) -> int:
    """Returns the number of floats of scratch memory that a function needs, as counted by the function named here."""
    count = getattr(_library(), function)
    count.restype = ctypes.c_int64
    return count(ctypes.byref(arguments))


def _library() -> ctypes.CDLL:
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailableError(f"this needs the compiled CPU kernels, which cannot be used: {loaded}")
    return loaded
