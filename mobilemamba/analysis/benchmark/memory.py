"""How much memory a case needs at its peak.

The same definition everywhere: the tensors that stay between calls (weights, pictures, in training AdamW's state), and
what a call takes on top of them at its highest point. On CUDA torch's allocator counts it. On a CPU the operating
system does, as libraries allocate past torch: a fresh process for each case warms up, has the kernel forget its
highest resident size (Linux), calls once more and reads it again. That process gives every block of 64 KiB and more
back as soon as it is freed, so that what was used before does not hide what a call needs. And a case that is too large
for the machine ends that process, not the benchmark.

Run as a module, it reads cases as lines of JSON and answers each with a line, from a fork of its own.
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
from mobilemamba.errors import is_out_of_memory

_TOO_LARGE = "out of memory"


def can_measure_cpu() -> bool:
    """Whether this operating system tells a process its highest resident size, and forgets it when asked."""
    return can_forget_peak() and has_choice()


class CpuMeter:
    """A process that measures CPU cases, one after the other, each in a fork of it.

    Args:
        threads: Threads that torch may use.
    """

    def __init__(self, threads: int):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobilemamba.analysis.benchmark.memory", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def peak(self, case: Case, layout: str) -> int:
        """Bytes at the peak.

        Raises:
            RuntimeError: If it fails, for want of memory say.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"case": asdict(case), "layout": layout}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return int(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def cuda_peak(workload: Workload, device: torch.device) -> int:
    """Bytes at the peak of one call, by torch's allocator; the second call, as the first one sets kernels up."""
    workload.run()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    workload.run()
    torch.cuda.synchronize(device)
    return workload.held_bytes + torch.cuda.max_memory_allocated(device) - before


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    if is_out_of_memory(error):
        return _TOO_LARGE
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def _cpu_peak(case: Case, layout: str) -> int:
    # Not the default, which rises with use and keeps what was freed: it would count as resident, and be used unseen.
    return_freed_memory()
    workload: Workload = silently(lambda: Workshop().build(case, layout))
    for _ in range(2):  # the second step of AdamW is the first with its state in place
        silently(workload.run)
    gc.collect()
    before = resident_bytes()
    forget_peak()
    workload.run()
    peak = peak_resident_bytes()
    assert peak is not None
    return workload.held_bytes + peak - before


def _answer(request: dict[str, Any]) -> int | str:
    try:
        return _cpu_peak(Case(**request["case"]), request["layout"])
    except Exception as error:  # whatever a network may raise; the benchmark reports it in its row
        return describe(error)


def _serve(threads: int) -> None:
    torch.set_num_threads(threads)  # before the first parallel operation, whose threads a fork would not have
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
        # A process without an answer was ended by the kernel, which does so when memory runs out.
        sys.stdout.write((answer or json.dumps(_TOO_LARGE)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
