"""Measures operators on a GPU against a copy, and networks against the EfficientViT of their class."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilemamba.analysis.benchmark.ceilings import memory_copy
from mobilemamba.analysis.benchmark.networks import measure
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.benchmark.scans import ScanRecord, measure_scans
from mobilemamba.analysis.benchmark.workload import Workload, Workshop
from mobilemamba.analysis.gpu.machine import rounded_to_tf32
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.analysis.timing import Clock, clock_of, interleave, synchronize
from mobilemamba.models.inference.graphs import CudaGraphs

_KERNELS_SHOWN, _OPERATORS_SHOWN = 15, 6
_REPEATS = 20  # calls of an operator in a CUDA graph


def operators(run: Run) -> None:
    """Measures the bytes a second of our operators as the first network calls them, and of the scan's backends."""
    for train in (False, True):
        for batch in run.sizes.kernel_batches:
            what = f"{'training' if train else 'inference'}, batch {batch}"
            if run.has_time(6, f"operators in {what}"):
                with run.trying(f"operators in {what}"):
                    _operators(run, batch, train, what)
    for train in (False, True):
        for batch in run.sizes.kernel_batches:
            what = f"scan {'forward and backward' if train else 'forward'}, batch {batch}"
            if run.has_time(6, what):
                with run.trying(what):
                    _scans(run, batch, train, what)


def _operators(run: Run, batch: int, train: bool, what: str) -> None:
    case = run.case(run.sizes.ours[0], batch, "float16", train=train)
    calls = operator_calls(Workshop().build(case))
    clocks: dict[Hashable, Clock] = {
        key: clock_of(_repeated(run, call), run.device) for key, (call, _, _) in calls.items()
    }
    copy, copied = memory_copy(str(run.device), run.sizes.copied_bytes)
    clocks["copy"] = clock_of(copy, run.device)
    timings, failed = interleave(clocks, run.sizes.rounds, run.sizes.seconds, run.sizes.seconds)
    bandwidth = copied / timings["copy"].median / 1e9
    shares = {}
    for key, (_, moved, count) in calls.items():
        if key in failed:
            run.find(f"{key}, {what}", f"failed: {failed[key]}", ok=False)
            continue
        seconds = timings[key].median / (_REPEATS if run.has_graphs else 1)
        rate = moved / seconds / 1e9
        run.add(operator=key, batch=batch, train=train, calls=count, microseconds=1e6 * seconds, gbytes_per_second=rate)
        found = f"{1e6 * seconds:.4g} us, {rate:.4g} GB/s, {rate / bandwidth:.0%} of copy"
        shares[key] = (moved, rate / bandwidth, found)
    largest = max((key for key in shares if "scan" in key), key=lambda key: shares[key][0], default="")
    for key, (_, share, found) in sorted(shares.items(), key=lambda item: -item[1][0])[:_OPERATORS_SHOWN]:
        if key == largest and batch > 1 and not train:
            run.find(f"{key}, {what}", found, ">= 60% of copy", share >= 0.6)
        else:
            run.find(f"{key}, {what}", found)
    if not calls:
        run.find(f"operators in {what}", "none of ours: plain PyTorch")


def _repeated(run: Run, call: Callable[[], object]) -> Callable[[], object]:
    """Returns some calls as one CUDA graph, as the host may take longer to start one than the device to run it."""
    if not run.has_graphs:
        return call

    def repeat(unused: Tensor) -> None:
        for _ in range(_REPEATS):
            call()

    return partial(CudaGraphs(), repeat, torch.zeros(1, device=run.device))


def operator_calls(workload: Workload) -> dict[str, tuple[Callable[[], object], int, int]]:
    """Collects every different call of our operators in a workload.

    Returns:
        Name and shape of the first tensor -> the call, the bytes of its inputs and outputs, and how often it occurs.
    """
    workload.run()  # so that what is computed only once is not counted
    noted: dict[str, tuple[Callable[[], object], int, int]] = {}

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            outputs = func(*args, **(kwargs or {}))
            if func.namespace == "mobilemamba":
                tensors = [x for x in tree_leaves((args, kwargs, outputs)) if isinstance(x, Tensor)]
                name = func._schema.name.partition("::")[2]
                key = f"{name} {'x'.join(map(str, tensors[0].shape))}"
                before = noted[key][2] if key in noted else 0
                noted[key] = _without_gradients(func, args, kwargs or {}), sum(x.nbytes for x in tensors), before + 1
            return outputs

    with Noting():
        workload.run()
    return noted


def _without_gradients(func: Any, args: Any, kwargs: Any) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return func(*args, **kwargs)

    return call


def _scans(run: Run, batch: int, train: bool, what: str) -> None:
    cases = [run.case(run.sizes.ours[0], batch, "float16", train=train)]
    found: dict[tuple[int, int], dict[str, ScanRecord]] = {}
    for record in measure_scans(cases, run.sizes.rounds, run.sizes.seconds):
        run.add(**asdict(record))
        found.setdefault((record.height, record.map_width), {})[record.backend] = record
    for (height, width), by in found.items():
        parts = [f"{name} {r.error or f'{r.latency_ms:.4g} ms'}" for name, r in by.items() if r.error or r.latency_ms]
        run.find(f"{what}, {height}x{width}", "; ".join(parts))


def networks(run: Run) -> None:
    """Compares ours with EfficientViT: eager and by CUDA graphs, in every precision, in large batches and singly."""
    sizes = run.sizes
    names = [*dict.fromkeys([name for pair in sizes.pairs for name in pair] + [*sizes.others])]
    modes = ("graph", "eager") if run.has_graphs else ("eager",)
    precisions = [dtype for dtype in sizes.dtypes if dtype != "float32"] + ["tf32", "float32"]
    for precision in precisions:  # of each the large batch, then single pictures
        for batch in sizes.batches:
            if not run.has_time(2.5 * len(names), f"networks, {precision}, batch {batch}"):
                continue
            dtype = "float32" if precision == "tf32" else precision
            cases = [run.case(name, batch, dtype, mode=mode) for name in names for mode in modes]
            with rounded_to_tf32(on=precision == "tf32"):
                records = measure(cases, sizes.rounds, sizes.seconds, memory=False, warmup=sizes.warmup)
            for record in records:
                run.add(precision=precision, **asdict(record))
            _compare(run, records, precision, batch)


def _compare(run: Run, records: list[Record], precision: str, batch: int) -> None:
    best: dict[str, Record] = {}
    for record in records:
        if record.images_per_second is None:
            run.find(f"{record.model} {record.mode}, {precision}, batch {batch}", record.error, ok=False)
        elif record.model not in best or record.images_per_second > (best[record.model].images_per_second or 0):
            best[record.model] = record
    peers = dict(run.sizes.pairs)
    goal = 1.0 if batch == 1 else 1.3 if precision in ("float16", "bfloat16") else 1.1
    for name, record in best.items():
        speed = record.images_per_second or 0.0
        found = f"{speed:,.0f} img/s, {record.latency_ms:.4g} ms ({record.mode})"
        peer = best.get(peers.get(name, ""))
        if peer is None:
            run.find(f"{name}, {precision}, batch {batch}", f"{found}, {record.layout}")
        else:
            ratio = speed / (peer.images_per_second or 1.0)
            found = f"{ratio:.2f} x {peers[name]}: {found}"
            run.find(f"{name}, {precision}, batch {batch}", found, f">= {goal}", ratio >= goal)
        if name == "mobilemamba_s6" and precision == "float16" and batch == 256:
            run.find("mobilemamba_s6, H100's goal", f"{speed:,.0f} img/s", ">= 50,000", speed >= 50_000)


def kernels(run: Run) -> None:
    """Lists the kernels in which the first network's inference spends its time."""
    case = run.case(run.sizes.ours[0], run.sizes.batches[0], run.sizes.dtypes[0])
    workload = Workshop().build(case)
    workload.run()
    on_gpu = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiled:
        for _ in range(3):
            workload.run()
        synchronize(run.device)
    events = [e for e in profiled.key_averages() if (e.device_type == DeviceType.CUDA) == on_gpu]
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    counts, whole = {event.key: event.count for event in events}, sum(times.values())
    if not whole:
        run.find("kernels a batch", "unknown: the profiler sees none")
        return
    run.find("kernels a batch", f"{sum(counts.values()) / 3:.0f} in {whole / 3e3:.4g} ms")
    for name in sorted(times, key=lambda name: -times[name])[:_KERNELS_SHOWN]:
        run.add(kernel=name, microseconds=times[name] / 3, calls=counts[name] / 3)
        run.find(name[:60], f"{times[name] / whole:.1%}, {counts[name] / 3:.0f} x {times[name] / counts[name]:.4g} us")


def compiled(run: Run) -> None:
    """Measures torch.compile of the first network and its peer, in a separate process that can be ended."""
    seconds = run.left_of_part - 2
    if not run.sizes.compiled or not run.has_time(20, "compile"):
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "compiled.json"
        options = ["--mode", "compiled", "--layout", "channels_last", "--dtype", "float16", "--no-memory"]
        options += [f"--device={run.device}", f"--batch={run.sizes.batches[0]}", f"--rounds={run.sizes.rounds}"]
        options += ["--output", str(output)]
        command = [sys.executable, "-m", "mobilemamba_command", "benchmark", *run.sizes.pairs[0], *options]
        try:
            done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            run.find("compile", f"not done in {seconds:.0f} s")
            return
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            run.find("compile", f"failed with code {done.returncode}: {lines[-1][:160]}", ok=False)
        for record in json.loads(output.read_text()) if output.exists() else []:
            run.add(**record)
            speed = record["error"] or f"{record['images_per_second']:,.0f} img/s"
            run.find(f"{record['model']} compiled, float16", speed, ok=False if record["error"] else None)
