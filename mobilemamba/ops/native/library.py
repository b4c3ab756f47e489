"""Loads the compiled kernels, once, at first use."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from mobilemamba.ops.native.build import LIBRARY, fingerprint

_REMEDY = "install gcc or clang, then: python -m mobilemamba.ops.native.build"


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    if os.environ.get("MOBILEMAMBA_NATIVE", "1") == "0":
        return "switched off by MOBILEMAMBA_NATIVE=0"
    if not LIBRARY.exists():
        return f"not compiled ({_REMEDY})"
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        compiled_from = ctypes.c_char_p(ctypes.addressof(ctypes.c_char.in_dll(loaded, "mobilemamba_fingerprint"))).value
    except (OSError, ValueError) as error:
        return f"cannot be loaded ({error})"
    if compiled_from != fingerprint().encode():
        return f"compiled from other sources ({_REMEDY})"
    return loaded


def why_not() -> str | None:
    """The reason why the compiled kernels cannot be used, or None."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def library() -> ctypes.CDLL:
    """The compiled kernels; only where ``why_not()`` is None."""
    loaded = _load()
    assert isinstance(loaded, ctypes.CDLL), loaded
    return loaded
