"""Measurement of networks: they are built, timed in interleaved rounds, and recorded with their conditions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mobilemamba.analysis.benchmark.cases import DTYPES, LAYOUTS, Case
from mobilemamba.analysis.benchmark.ceilings import matrix_product
from mobilemamba.analysis.benchmark.memory import CpuMeter, can_measure_cpu, cuda_peak
from mobilemamba.analysis.benchmark.published import published_top1
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.benchmark.workload import Workload, Workshop, create, silently
from mobilemamba.analysis.complexity import complexity
from mobilemamba.analysis.machine import device_name, rounds_to_tf32, versions
from mobilemamba.analysis.timing import WARMUP_SECONDS, Clock, Timings, clock_of, interleave
from mobilemamba.errors import in_one_line, is_out_of_memory
from mobilemamba.models.runtime import PRECISION_KEY, RUNNERS, packages_of, runtime_of
from mobilemamba.ops.selective_scan import BACKENDS

#: Callback with a description of the current work, the number of steps done, and their total.
Progress = Callable[[str, int, int], None]
_TRIAL_ROUNDS = 5
_TRIAL_SECONDS = 0.2


@dataclass
class _Candidate:
    """A case while it is being measured; ``case.layout`` is a layout, not ``auto``."""

    case: Case
    layout_chosen: bool = False
    workload: Workload | None = None
    peak_bytes: int | None = None
    parts: dict[str, Any] = field(default_factory=dict)  # the record's fields for a detector's parts
    error: str = ""

    @property
    def clock(self) -> Clock:
        assert self.workload is not None
        return clock_of(self.workload.run, self.case.device)


def measure(
    cases: Iterable[Case],
    rounds: int = 15,
    seconds: float = 0.5,
    memory: bool = True,
    progress: Progress = lambda what, done, total: None,
    warmup: float = WARMUP_SECONDS,
) -> list[Record]:
    """Times cases in interleaved rounds, together with a matrix product as the machine's ceiling.

    If a case fails, e.g. for lack of memory, its record has the reason, and the others continue.

    Args:
        cases: See :func:`~mobilemamba.analysis.benchmark.cases.expand`.
        rounds: Number of rounds.
        seconds: Approximate time of each case per round.
        memory: Whether to measure the peak memory as well.
        progress: Called with the progress.
        warmup: Shortest warm-up of each case in seconds.
    """
    cases = list(cases)
    workshop = Workshop()
    candidates: list[_Candidate] = []
    with ExitStack() as stack:
        meter = None
        if memory and can_measure_cpu() and any(torch.device(case.device).type == "cpu" for case in cases):
            meter = stack.enter_context(closing(CpuMeter(torch.get_num_threads())))
        for number, case in enumerate(cases):
            progress("build and warm up", number, len(cases))
            layouts = LAYOUTS if case.layout == "auto" else (case.layout,)
            rivals = [_Candidate(replace(case, layout=layout), case.layout == "auto") for layout in layouts]
            for rival in rivals:
                _prepare(rival, workshop, meter.peak if meter else None, memory)
            candidates.append(_faster(rivals, seconds))
    progress("build and warm up", len(cases), len(cases))

    clocks: dict[Hashable, Clock] = {number: c.clock for number, c in enumerate(candidates) if not c.error}
    places = dict.fromkeys((c.case.device, c.case.dtype) for c in candidates if not c.error)
    products = {place: matrix_product(*place) for place in places}
    clocks |= {place: clock_of(run, place[0]) for place, (run, _) in products.items()}
    timings, failed = interleave(clocks, rounds, seconds, warmup, counting(progress, len(clocks), rounds))
    ceilings = {place: macs / timings[place].median / 1e9 for place, (_, macs) in products.items() if place in timings}
    for number, candidate in enumerate(candidates):
        if number in failed:
            candidate.error = in_one_line(failed[number])
        elif candidate.workload is not None and candidate.workload.parts is not None:
            candidate.parts = {
                f"{part}_ms": 1e3 * seconds for part, seconds in candidate.workload.parts(rounds).items()
            }
    return [
        _record(c, timings.get(number), ceilings.get((c.case.device, c.case.dtype)), rounds)
        for number, c in enumerate(candidates)
    ]


def counting(progress: Progress, clocks: int, rounds: int) -> Callable[[], None]:
    """Returns the ``advance`` of :func:`~mobilemamba.analysis.timing.interleave` that reports its progress."""
    steps = itertools.count(1)
    return lambda: progress("measure", next(steps), clocks * (rounds + 1))


def latency(timings: Timings | None) -> dict[str, Any]:
    """Returns a record's fields for the median and the quartiles of a call, in milliseconds; None if it failed."""
    seconds = (None, None, None) if timings is None else (timings.median, *timings.quartiles)
    names = ("latency_ms", "latency_q1_ms", "latency_q3_ms")
    return {name: None if value is None else 1e3 * value for name, value in zip(names, seconds, strict=True)}


def _prepare(
    candidate: _Candidate, workshop: Workshop, cpu_peak: Callable[[Case], int | str] | None, memory: bool
) -> None:
    case, device = candidate.case, torch.device(candidate.case.device)
    try:
        if device.type == "cpu" and cpu_peak is not None and case.mode not in RUNNERS:
            peak = cpu_peak(case)
            if isinstance(peak, str):
                candidate.error = peak
                return
            candidate.peak_bytes = peak
        workload = workshop.build(case)
        with silently():
            workload.run()
        if device.type == "cuda" and memory and case.mode != "graph":  # whose memory the allocator does not count
            candidate.peak_bytes = cuda_peak(workload, device)
        candidate.workload = workload
    except Exception as error:  # any error of a network, which is reported in its row
        candidate.error = in_one_line(error)
        if device.type == "cuda" and is_out_of_memory(error):
            torch.cuda.empty_cache()


def _faster(rivals: list[_Candidate], seconds: float) -> _Candidate:
    """Returns the candidate that is fastest in a short interleaved trial; the others' networks can be freed."""
    running = [rival for rival in rivals if not rival.error]
    if len(running) <= 1:
        return (running or rivals)[0]
    clocks = {number: rival.clock for number, rival in enumerate(running)}
    trial = min(seconds, _TRIAL_SECONDS)
    timings, _ = interleave(clocks, _TRIAL_ROUNDS, trial, trial)
    return running[min(timings, key=lambda number: timings[number].median)] if timings else running[0]


@functools.cache
def _macs(model: str, sides: tuple[int, int]) -> int | None:
    with torch.device("meta"):
        network = create(Case(model, sides[1], height=sides[0]))
    try:
        return complexity(network, sides).macs
    except Exception:  # a network that does not run on the meta device is timed without a count
        return None


def _record(candidate: _Candidate, timings: Timings | None, ceiling: float | None, rounds: int) -> Record:
    case, device = candidate.case, torch.device(candidate.case.device)
    macs = _macs(case.model, case.sides) if timings else None
    if macs and case.train:
        macs *= 3  # a backward pass has two products for each product of the forward pass
    rate = macs * case.batch / timings.median / 1e9 if macs and timings else None
    tf32_matmul, tf32_convolution = rounds_to_tf32(device)
    conditions = asdict(case)
    if (runtime := runtime_of(case.model)) and not candidate.error:
        conditions["dtype"] = runtime.metadata(Path(case.model)).get(PRECISION_KEY, case.dtype)
        if conditions["dtype"] != case.dtype:
            ceiling = None  # as it was measured in the case's dtype
    chosen = (
        BACKENDS.choose(case.scan_backend, device, DTYPES[case.dtype])
        if case.is_ours and case.mode not in RUNNERS
        else None
    )
    conditions["scan_backend"] = chosen.name if chosen else ""
    return Record(
        **conditions,
        layout_chosen=candidate.layout_chosen,
        batch_norms=candidate.workload.batch_norms if candidate.workload and case.mode not in RUNNERS else None,
        **latency(timings),
        images_per_second=case.batch / timings.median if timings else None,
        spread=timings.spread if timings else None,
        macs=macs,
        gmacs_per_second=rate,
        ceiling_gmacs_per_second=ceiling if timings else None,
        ceiling_fraction=rate / ceiling if rate and ceiling else None,
        peak_memory_mib=candidate.peak_bytes / 2**20 if candidate.peak_bytes is not None else None,
        rounds=rounds,
        calls_per_round=timings.calls if timings else None,
        **candidate.parts,
        paper_top1=published_top1(case.model, case.size) if case.height is None else None,
        processor=device_name(device),
        threads=torch.get_num_threads(),
        tf32_matmul=tf32_matmul,
        tf32_convolution=tf32_convolution,
        versions=versions(*packages_of(case.mode)),
        error=candidate.error,
    )
