"""Resident memory of this process as the operating system counts it: now, and at its highest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")  # proc(5)


def can_forget_peak() -> bool:
    """Whether the operating system tells a process its resident size, and forgets the highest when asked (Linux)."""
    return _STATUS.exists() and os.access(_CLEAR, os.W_OK)


def forget_peak() -> None:
    """Makes :func:`peak_resident_bytes` count from now on.

    Raises:
        OSError: Where the operating system cannot (:func:`can_forget_peak`).
    """
    _CLEAR.write_text("5")


def resident_bytes() -> int:
    """Bytes resident now, on Linux."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """Bytes resident at the highest, or None on a system that does not tell (Windows)."""
    if _STATUS.exists():
        # Not getrusage(2) here: it counts what the parent process had when it started this one, and keeps it.
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
