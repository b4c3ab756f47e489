"""Compiles the kernels of a run beforehand, in parallel on all processors: one by one would take most of its time.

A separate process does it, run as ``python -m`` this module with the device as its argument. It may fail or be ended:
what it has compiled until then is in Triton's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mobilemamba.analysis.benchmark.cases import DTYPES, Case
from mobilemamba.analysis.benchmark.scans import ScanShape
from mobilemamba.analysis.benchmark.workload import Workshop, create
from mobilemamba.analysis.gpu.correctness import run_scan, scan_shapes
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.analysis.gpu.sizes import Sizes
from mobilemamba.errors import in_one_line
from mobilemamba.ops import jit


def kernels_ahead(run: Run) -> None:
    """Compiles the kernels of the parts that follow."""
    if run.device.type != "cuda":
        run.find("kernels compiled", f"none on {run.device}")
        return
    command = [sys.executable, "-m", "mobilemamba.analysis.gpu.ahead", str(run.device)]
    try:
        done = subprocess.run(command, timeout=run.left_of_part, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        run.find("kernels compiled", "not all in this time; the others are when they are first called")
        return
    lines = (done.stdout or done.stderr).strip().splitlines() or [f"code {done.returncode}"]
    run.find("kernels compiled", lines[-1][:160], "all", done.returncode == 0)


def workloads(run: Run) -> Iterator[Callable[[], object]]:
    """Yields functions that together launch all kernels of a run, those that are needed first at the beginning."""
    sizes, workshop = run.sizes, Workshop()
    others = list[ScanShape]()
    for shape in scan_shapes(run):
        if (shape.directions, shape.d_state) == (sizes.directions[0], sizes.states[0]):
            yield partial(run_scan, shape)
        else:  # no network has these, and they take the longest
            others.append(shape)
    cases = [run.case(name, 4, "float32") for name in sizes.ours]
    for case in cases:
        for dtype in sizes.dtypes:
            yield partial(_as_it_is, replace(case, dtype=dtype))
            for batch in dict.fromkeys((4, *sizes.batches)):
                yield partial(_workload, workshop, replace(case, dtype=dtype, batch=batch))
    training = [replace(case, dtype="bfloat16") for case in cases[: len(sizes.pairs)]]
    for case in (*training, replace(cases[0], dtype="float16"), cases[0]):
        yield partial(_workload, workshop, replace(case, fused=False, train=True))
    yield from (partial(run_scan, shape) for shape in others)


def _workload(workshop: Workshop, case: Case) -> None:
    workshop.build(case).run()


def _as_it_is(case: Case) -> None:
    network = create(case).eval().to(case.device, DTYPES[case.dtype])
    pictures = torch.zeros(case.batch, 3, *case.sides, device=case.device, dtype=DTYPES[case.dtype])
    with torch.inference_mode():
        network.to(memory_format=torch.channels_last)(pictures.contiguous(memory_format=torch.channels_last))


def compile_all(calls: Iterator[Callable[[], object]]) -> tuple[int, list[BaseException]]:
    """Compiles each kernel that the calls would launch, once.

    Returns:
        How many kernels, and what went wrong with some.
    """
    futures = dict[object, Future[Any]]()
    errors = list[BaseException]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for call in calls:
            with jit.noting_launches() as compilations:
                try:
                    call()
                except Exception as error:  # the run will meet it too, and say where
                    errors.append(error)
            for kind, compilation in compilations.items():
                if kind not in futures:
                    futures[kind] = pool.submit(compilation)
    errors += filter(None, (future.exception() for future in futures.values()))
    return len(futures), errors


def main(device: str) -> None:
    """Prints one line at the end, and exits with code 1 if a call or a compilation failed."""
    run = Run(torch.device(device), Sizes(), Path(os.devnull), 0)
    count, errors = compile_all(workloads(run))
    sys.stdout.write(f"{count}, {len(errors)} failed: {in_one_line(errors[0])}\n" if errors else f"{count}\n")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main(sys.argv[1])
