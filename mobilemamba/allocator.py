"""Control of glibc's handling of freed memory, for the whole process.

By default glibc returns large blocks to the system, and the next tensor has to obtain its pages again, with a page
fault and zeroing for each.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_NEVER = 2**31 - 1
_SOON = 2**16


def has_choice() -> bool:
    """Whether the C library is glibc, or supports the same options."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt")


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for later tensors, so that networks run and train faster on a CPU.

    The process then holds its peak memory until it ends. Does nothing if the user has set ``MALLOC_*`` environment
    variables.

    Returns:
        Whether freed memory will be kept.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"} & os.environ.keys()
    return not chosen and has_choice() and _set(_M_MMAP_THRESHOLD, _NEVER) and _set(_M_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> bool:
    """Makes this process return every block of 64 KiB or more to the system as soon as it is freed.

    Returns:
        Whether freed memory will be returned.
    """
    return has_choice() and _set(_M_MMAP_THRESHOLD, _SOON)


def _set(option: int, value: int) -> bool:
    return bool(ctypes.CDLL(None).mallopt(option, value))
