"""Peak memory of a case.

The definition is the same on all devices: the tensors that persist between calls (weights, pictures, in training
AdamW's state), plus the most that a call needs in addition. On CUDA, torch's allocator counts this, except for a CUDA
graph, which keeps between calls what the allocator takes for free. On a CPU it is measured by the operating system, as
libraries allocate memory without torch: a new process for each case warms up, makes the kernel reset its peak resident
size (Linux), makes one more call, and reads the peak. The process returns every block of 64 KiB or more as soon as it
is freed, so that memory used before does not hide what a call needs. A case that is too large for the machine ends only
this process, not the benchmark.

Run as a module, it reads cases as lines of JSON, and answers each by a line from a forked process.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch

from mobilemamba.allocator import has_choice, return_freed_memory
from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.workload import Workload, Workshop, silently
from mobilemamba.analysis.resident import can_forget_peak, forget_peak, peak_resident_bytes, resident_bytes
from mobilemamba.errors import OUT_OF_MEMORY, in_one_line


def can_measure_cpu() -> bool:
    """Whether this operating system provides the peak resident size of a process and can reset it."""
    return can_forget_peak() and has_choice()


class CpuMeter:
    """A process that measures CPU cases one by one, each in a forked child process.

    Args:
        threads: Number of threads that torch may use.
    """

    def __init__(self, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobilemamba.analysis.benchmark.memory", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def peak(self, case: Case) -> int | str:
        """Returns the peak memory of a case in bytes; or if it fails, e.g. for lack of memory, why, in one line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        peak: int | str = json.loads(self._process.stdout.readline())
        return peak

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def cuda_peak(workload: Workload, device: torch.device) -> int:
    """Returns the peak memory of a call in bytes, by torch's allocator; of the second, as the first sets up kernels."""
    workload.run()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    workload.run()
    torch.cuda.synchronize(device)
    return workload.held_bytes + torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(case: Case) -> int:
    # The default allocator keeps freed memory, which would count as resident and be reused without being measured.
    return_freed_memory()
    workload = Workshop().build(case)
    with silently():
        for _ in range(2):  # the first step of AdamW creates its state
            workload.run()
    gc.collect()
    before = resident_bytes()
    forget_peak()
    workload.run()
    peak = peak_resident_bytes()
    assert peak is not None
    return workload.held_bytes + peak - before


def _answer(case: dict[str, Any]) -> int | str:
    try:
        return _cpu_peak(Case(**case))
    except Exception as error:  # any error of a network, which the benchmark reports in its row
        return in_one_line(error)


def _serve(threads: int) -> None:
    torch.set_num_threads(threads)  # before any parallel operation, whose threads a forked process would not have
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, json.dumps(_answer(json.loads(line))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read().decode()
        os.waitpid(child, 0)
        # A process without an answer was killed by the kernel, which happens when memory runs out.
        sys.stdout.write((answer or json.dumps(OUT_OF_MEMORY)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
