"""Current and peak resident memory of this process, as measured by the operating system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")  # proc(5)


def can_forget_peak() -> bool:
    """Whether the operating system provides a process's resident size and can reset its peak (Linux)."""
    return _STATUS.exists() and os.access(_CLEAR, os.W_OK)


def forget_peak() -> None:
    """Makes :func:`peak_resident_bytes` measure from now on.

    Raises:
        OSError: If the operating system does not support this (:func:`can_forget_peak`).
    """
    _CLEAR.write_text("5")


def resident_bytes() -> int:
    """Returns the current resident size in bytes, on Linux."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """Returns the peak resident size in bytes, or None if the system does not provide it (Windows)."""
    if _STATUS.exists():
        # Not getrusage(2), which includes the parent process's memory at the start of this one, and cannot be reset.
        return _status("VmHWM")
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
