"""Tells what the GPU is, and measures its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from mobilemamba.analysis.benchmark.ceilings import matrix_product, memory_copy
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.analysis.machine import device_name, versions
from mobilemamba.analysis.timing import clock_of, interleave
from mobilemamba.ops.kernels import describe_kernels


@contextmanager
def rounded_to_tf32(*, on: bool) -> Iterator[None]:
    """Lets CUDA round float32 matrix products and convolutions to TF32 in this context, or forbids it."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # not in its stubs
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if on else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def machine(run: Run) -> None:
    """Reports versions, the backends of the operations, and the speed of a copy and of matrix products."""
    run.find("device", device_name(run.device))
    run.find("versions", f"{versions()}, triton {_version('triton')}, mamba_ssm {_version('mamba_ssm')}")
    run.find("kernels", describe_kernels(run.device).removeprefix("kernels: "))
    copy, moved = memory_copy(str(run.device), run.sizes.copied_bytes)
    run.add(copy_gbytes_per_second=(speed := moved / _seconds(run, copy) / 1e9))
    run.find("copy", f"{speed:.4g} GB/s, reading and writing")
    for dtype, tf32 in [("float32", False), ("float32", True), ("float16", False), ("bfloat16", False)]:
        with rounded_to_tf32(on=tf32):
            product, macs = matrix_product(str(run.device), dtype, run.sizes.matrix_side)
            rate = 2 * macs / _seconds(run, product) / 1e12
        name = "tf32" if tf32 else dtype
        run.add(product=name, tflops_per_second=rate)
        run.find(f"matrix product, {name}", f"{rate:.4g} TFLOP/s")


def _seconds(run: Run, call: Callable[[], Any]) -> float:
    clocks = {"only": clock_of(call, run.device)}
    timings, failed = interleave(clocks, run.sizes.rounds, run.sizes.seconds, run.sizes.warmup)
    if failed:
        raise failed["only"]
    return timings["only"].median


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
