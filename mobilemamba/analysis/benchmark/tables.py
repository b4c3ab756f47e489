"""Tables and notes of records for the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group

from mobilemamba.analysis.benchmark.cases import card_of
from mobilemamba.analysis.benchmark.comparison import (
    Conditions,
    against_the_front,
    at_equal_top1,
    exponents,
    with_fastest,
)
from mobilemamba.analysis.benchmark.parts import PARTS
from mobilemamba.analysis.benchmark.records import Record
from mobilemamba.analysis.benchmark.scans import ScanRecord
from mobilemamba.screen import fit_table

#: Largest exponent of cost over pixels that counts as linear.
LINEAR = 1.05


def network_table(records: Sequence[Record], width: int) -> Group:
    """Returns a table with a line for each record, and notes on failures, for a screen of ``width`` characters."""
    what = "Training steps" if records[0].train else "Inference"
    header = ["model", "px", "batch", "dtype", "mode", "layout", "ms", "quartiles", "img/s", "of ceiling", "MiB"]
    lines = []
    for record in records:
        start = [record.model, record.px, f"{record.batch}", record.dtype, record.mode, record.layout]
        lines.append([*start, *(["failed", "", "", "", ""] if record.error else _measured(record))])
    return fit_table(
        width,
        header,
        lines,
        title=f"{what}, medians of {records[0].rounds} common rounds",
        notes=_failures((f"{r.model}, {r.px} px, batch {r.batch}, {r.dtype}, {r.mode}", r.error) for r in records),
        numeric=[1, 2, 6, 7, 8, 9, 10],
        spare=[5, 4, 3, 10, 9],
    )


def _failures(records: Iterable[tuple[str, str]]) -> list[str]:
    """Returns a note for each error from pairs (what failed, error); the error is empty if there is none."""
    named: dict[str, list[str]] = {}
    for name, error in records:
        if error:
            named.setdefault(error, []).append(name)
    return [f"failed: {error} ({'; '.join(dict.fromkeys(names))})" for error, names in named.items()]


def _measured(record: Record) -> list[str]:
    return [
        f"{record.latency_ms:.4g}",
        f"{record.latency_q1_ms:.4g}-{record.latency_q3_ms:.4g}",
        f"{record.images_per_second:.4g}",
        "" if record.ceiling_fraction is None else f"{record.ceiling_fraction:.2f}",
        "" if record.peak_memory_mib is None else f"{record.peak_memory_mib:.0f}",
    ]


def network_notes(records: Sequence[Record]) -> list[str]:
    """Returns notes on the common conditions of all records, and on their comparisons."""
    first = records[0]
    ceilings = {
        (r.processor, r.dtype): f"{2 * r.ceiling_gmacs_per_second:.0f} GFLOP/s in {r.dtype} on {r.processor}"
        for r in records
        if r.ceiling_gmacs_per_second
    }
    lines = []
    if ceilings:
        lines.append(f"ceiling: a large matrix product in the same rounds, {'; '.join(ceilings.values())}")
    lines.append("norms folded" if first.fused else "norms as trained")
    if first.fused and (kept := {r.model: r.batch_norms for r in records if r.batch_norms}):
        lines[-1] += "".join(f", but {count} of {model} are left" for model, count in kept.items())
    if backends := dict.fromkeys(r.scan_backend for r in records if r.scan_backend):
        lines[-1] += f"; scan backend {', '.join(backends)}"
    versions = dict.fromkeys(version for record in records for version in record.versions.split(", "))
    tf32 = f"TF32 for matrix products {_on(first.tf32_matmul)}, for convolutions {_on(first.tf32_convolution)}"
    lines[-1] += f"; {first.threads} thread{'s' * (first.threads != 1)}; {tf32}; {', '.join(versions)}"
    if any(record.peak_memory_mib is not None for record in records):
        lines.append("MiB: weights and pictures, and what a call takes on top of them at its peak")
    for record in records:
        if times := {part: value for part in PARTS if (value := getattr(record, f"{part}_ms")) is not None}:
            shares = ", ".join(f"{part} {value / sum(times.values()):.1%}" for part, value in times.items())
            lines.append(f"of {record.model} at {record.px} px, {record.layout}: {shares}")
    if any(record.rest_ms is not None for record in records):
        lines.append(
            "rest: boxes, regions, the choice among overlapping ones; where weights are random, of 1,000 candidates"
        )
    if alone := dict.fromkeys(r.mode for r in records if not r.error and r.mode != "eager" and card_of(r.model).head):
        lines.append(f"in {', '.join(alone)}: networks alone; eager ones choose boxes, or each pixel's class, as well")
    compared = with_fastest(records)
    if equal := at_equal_top1(compared):
        lines.append("times the speed of the line through EfficientViT's points at the same published top-1:")
        lines += _by_conditions(equal)
    for best, how in ((False, "published top-1 without a teacher"), (True, "top-1 by the best published recipe")):
        if front := against_the_front(compared, best=best):
            lines.append(f"times the speed of the fastest other network that is at least as accurate, {how}:")
            lines += _by_conditions({key: f"{ratio:.2f} ({rival})" for key, (ratio, rival) in front.items()})
    if fits := exponents(records):
        lines.append(f"p in cost = c * pixels^p (linear: at most {LINEAR}):")
        lines += _by_conditions(fits)
    return lines


def scan_table(records: Sequence[ScanRecord], width: int) -> Group:
    """Returns a table with a line for each backend and shape, for a screen of ``width`` characters.

    Rates are given with their fractions of the ceilings; notes explain failures.
    """
    what = "forward and backward" if records[0].train else "forward"
    header = ["B", "K", "D", "N", "H x W", "in", "backend", "ms", "quartiles", "GB/s", "of copy", "GFLOP/s", "of mm"]
    lines: list[list[str]] = []
    sections: list[int] = []
    shape: tuple[int, ...] = ()
    for record in records:
        own = (record.batch, record.directions, record.width, record.d_state, record.height, record.map_width)
        sides = f"{record.height}x{record.map_width}"
        start = [*map(str, own[:4]), sides, record.used_by] if own != shape else [""] * 6
        if shape and own != shape:
            sections.append(len(lines) - 1)
        shape = own
        measured = ["failed", "", "", "", "", ""] if record.error else _rates(record)
        lines.append([*start, record.backend, *measured])
    return fit_table(
        width,
        header,
        lines,
        title=f"Selective scan, {what}, {records[0].dtype}",
        notes=_failures((f"{r.backend}, {r.height}x{r.map_width}, batch {r.batch}", r.error) for r in records),
        numeric=[0, 1, 2, 3, 4, *range(7, 13)],
        spare=[5, 11, 9, 12, 10],
        sections=sections,
    )


def _rates(record: ScanRecord) -> list[str]:
    return [
        f"{record.latency_ms:.4g}",
        f"{record.latency_q1_ms:.4g}-{record.latency_q3_ms:.4g}",
        f"{record.gbytes_per_second:.3g}",
        _share(record.gbytes_per_second, record.copy_gbytes_per_second),
        f"{record.gflops_per_second:.3g}",
        _share(record.gflops_per_second, record.product_gflops_per_second),
    ]


def scan_notes(records: Sequence[ScanRecord]) -> list[str]:
    """Returns notes on the ceilings, the conditions, and the definition of the rates."""
    first = records[0]
    lines = []
    if first.copy_gbytes_per_second and first.product_gflops_per_second:
        lines.append(
            f"ceilings in the same rounds: a large copy {first.copy_gbytes_per_second:.1f} GB/s (reading and writing), "
            f"a large matrix product {first.product_gflops_per_second:.0f} GFLOP/s"
        )
    lines.append(f"{first.processor}; {first.versions}")
    lines.append("GB/s: inputs read and outputs written once; what stays in the caches can be faster than the copy")
    return lines


def _by_conditions(values: Mapping[tuple[str, Conditions], float | str]) -> Iterable[str]:
    groups: dict[Conditions, list[str]] = {}
    for (model, shared), value in values.items():
        groups.setdefault(shared, []).append(f"{model} {value if isinstance(value, str) else f'{value:.2f}'}")
    for (device, dtype, mode, _, batch), entries in groups.items():
        yield f"  batch {batch}, {dtype}, {mode}, {device}: {', '.join(entries)}"


def _share(value: float | None, ceiling: float | None) -> str:
    return "" if value is None or ceiling is None else f"{value / ceiling:.2f}"


def _on(value: bool) -> str:
    return "on" if value else "off"
