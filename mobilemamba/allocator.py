"""What the C library does with the memory of tensors that are no longer needed: glibc's choice for a whole process.

By itself glibc gives large blocks back to the system, and the next tensor gets its pages anew, one fault and one zeroed
page at a time.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_NEVER = 2**31 - 1
_SOON = 2**16


def has_choice() -> bool:
    """Whether the C library is glibc, or takes the same options."""
    return os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt")


def keep_freed_memory() -> bool:
    """Lets this process keep what its tensors free, for those to come: networks then run and train faster on a CPU.

    A process that served or trained large batches then holds its highest memory until it ends. ``MALLOC_*`` variables
    of the environment, by which the user has chosen already, go before.

    Returns:
        Whether it will.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"} & os.environ.keys()
    return not chosen and has_choice() and _set(_M_MMAP_THRESHOLD, _NEVER) and _set(_M_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> bool:
    """Lets this process give every block of 64 KiB and more back as soon as it is freed.

    Returns:
        Whether it will.
    """
    return has_choice() and _set(_M_MMAP_THRESHOLD, _SOON)


def _set(option: int, value: int) -> bool:
    return bool(ctypes.CDLL(None).mallopt(option, value))
