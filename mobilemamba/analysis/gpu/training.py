"""Measures training on a GPU: time and memory of a step, equal bits in two runs, and memory against pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.comparison import exponent
from mobilemamba.analysis.benchmark.memory import cuda_peak
from mobilemamba.analysis.benchmark.networks import measure
from mobilemamba.analysis.benchmark.tables import LINEAR
from mobilemamba.analysis.benchmark.workload import Workshop, create
from mobilemamba.analysis.gpu.correctness import as_if_trained, gradients
from mobilemamba.analysis.gpu.run import Run


def steps(run: Run) -> None:
    """Compares a training step in bfloat16 of each of ours with its peer's: milliseconds and peak memory."""
    for ours, peer in run.sizes.pairs:
        if not run.has_time(8, f"training step of {ours}"):
            continue
        cases = [run.case(name, run.sizes.train_batch, "bfloat16", train=True) for name in (ours, peer)]
        sizes, on_gpu = run.sizes, run.device.type == "cuda"
        records = measure(cases, sizes.rounds, sizes.seconds, memory=on_gpu, warmup=sizes.warmup)
        for record in records:
            run.add(**asdict(record))
            memory = "" if record.peak_memory_mib is None else f", {record.peak_memory_mib:,.0f} MiB at the peak"
            what, found = f"training step of {record.model}", record.error or f"{record.latency_ms:.4g} ms{memory}"
            run.find(f"{what}, batch {record.batch}", found, ok=False if record.error else None)
        first, second = (record.latency_ms for record in records)
        if first and second:
            ratio = second / first
            run.find(f"speed of a training step, {ours} over {peer}", f"{ratio:.2f} x", ">= 0.9", ratio >= 0.9)
        first, second = (record.peak_memory_mib for record in records)
        if first and second:
            run.find(f"memory of a training step, {ours} over {peer}", f"{first / second:.2f} x")


def same_bits(run: Run) -> None:
    """Computes the gradients of one batch twice, with PyTorch's kernels as they are and in deterministic form."""
    name = run.sizes.ours[0]
    size, batch = run.sizes.size_of(name), run.sizes.train_batch
    network = as_if_trained(create(Case(name, size)), size)
    network = network.train().to(run.device).to(memory_format=torch.channels_last)
    pictures = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    pictures = pictures.to(run.device, memory_format=torch.channels_last)
    names = [weight for weight, parameter in network.named_parameters() if parameter.requires_grad]
    before = torch.are_deterministic_algorithms_enabled()
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        try:
            with torch.autocast(run.device.type, torch.bfloat16):
                first, second = (gradients(network, pictures) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(before)
        differ = [weight for weight, a, b in zip(names, first, second, strict=True) if not torch.equal(a, b)]
        run.add(model=name, deterministic=deterministic, differ=differ)
        how = "deterministic" if deterministic else "as they are"
        found = "the same bits" if not differ else f"{len(differ)} of {len(names)} differ: {', '.join(differ[:2])}"
        run.find(f"{name} gradients twice, {how}", found, *(("same", not differ) if deterministic else ()))


def memory(run: Run) -> None:
    """Measures peak memory of a training step against the pixels of a picture; an exponent of 1 is linear."""
    if run.device.type != "cuda":
        run.find("memory against pixels", f"not counted on {run.device}")
        return
    peaks: dict[int, int] = {}
    name, batch = run.sizes.ours[0], run.sizes.memory_batch
    for size in run.sizes.memory_sizes:
        if not run.has_time(4, f"memory at {size} px"):
            break
        case = replace(run.case(name, batch, "bfloat16", train=True), size=size)
        workload = Workshop().build(case)
        peaks[size] = cuda_peak(workload, run.device) - workload.held_bytes
        run.add(model=name, batch=batch, size=size, held_bytes=workload.held_bytes, peak_bytes=peaks[size])
        run.find(f"{name}, batch {batch}, {size} px", f"{peaks[size] / 2**20:,.0f} MiB")
        del workload
    if len(peaks) > 1:
        power = growth(peaks)
        run.find("memory = c pixels^p", f"p = {power:.2f}", f"<= {LINEAR}", power <= LINEAR)


def growth(peaks: Mapping[int, int]) -> float:
    """Returns p in bytes = c pixels^p, from the two largest sides."""
    largest = sorted(peaks)[-2:]
    return exponent([side**2 for side in largest], [peaks[side] for side in largest])
