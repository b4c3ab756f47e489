"""The number of usable CPUs."""

import os


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use, which may be less than that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
