"""Results with all that they depend on, one record a case, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mobilemamba.files import write_json, write_text_atomic


@dataclass(frozen=True)
class Record:
    """What was found for one case; measured values are None where ``error`` says why there are none.

    Attributes:
        model: timm's name.
        size: Side of the pictures in pixels.
        batch: Pictures at a time.
        device: torch's name.
        dtype: Of weights and pictures, in training of the autocast region.
        mode: ``"eager"``, ``"compiled"`` or ``"exported"``.
        train: A training step (forward, backward, AdamW) and not inference.
        layout: ``"contiguous"`` or ``"channels_last"``.
        layout_chosen: Whether it was found to be the faster one, and not asked for.
        fused: Whether norms were to be folded.
        batch_norms: BatchNorm layers that were run.
        scan_backend: Of the selective scan; empty for networks without one.
        latency_ms: Median time of a batch (in training: of a step) over the rounds, in milliseconds.
        latency_q1_ms: First quartile.
        latency_q3_ms: Third quartile.
        images_per_second: By the median.
        spread: (third - first quartile) / median; more than about 0.1 says that the machine was busy.
        macs: Multiply-adds for a picture; in training three times those of inference, as usual.
        gmacs_per_second: Billions of multiply-adds a second, by the median.
        ceiling_gmacs_per_second: Those of a large matrix product on that device in that dtype, its median in the
            same rounds.
        ceiling_fraction: One over the other.
        peak_memory_mib: See :mod:`mobilemamba.analysis.benchmark.memory`.
        rounds: Number of rounds.
        calls_per_round: Batches or steps timed together in a round.
        paper_top1: Published ImageNet-1k top-1 in %, at the size that it is of.
        processor: The device in words.
        threads: Of torch on the CPU.
        tf32_matmul: Whether CUDA rounds fp32 matrix products to TF32.
        tf32_convolution: The same for convolutions.
        versions: Of the libraries, in words.
        error: Why there are no results; empty if there are.
    """

    model: str
    size: int
    batch: int
    device: str
    dtype: str
    mode: str
    train: bool
    layout: str
    layout_chosen: bool
    fused: bool
    batch_norms: int | None
    scan_backend: str
    latency_ms: float | None
    latency_q1_ms: float | None
    latency_q3_ms: float | None
    images_per_second: float | None
    spread: float | None
    macs: int | None
    gmacs_per_second: float | None
    ceiling_gmacs_per_second: float | None
    ceiling_fraction: float | None
    peak_memory_mib: float | None
    rounds: int
    calls_per_round: int | None
    paper_top1: float | None
    processor: str
    threads: int
    tf32_matmul: bool
    tf32_convolution: bool
    versions: str
    error: str


def write_records(records: Iterable[Any], path: Path) -> None:
    """Writes dataclasses of one kind as CSV (a line each, empty where a value is None) or JSON, by the name's end.

    Raises:
        OSError: If the file cannot be written; an old one is then as it was.
    """
    rows = list(records)
    if path.suffix == ".json":
        write_json(path, [asdict(row) for row in rows])
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text_atomic(path, text.getvalue())
