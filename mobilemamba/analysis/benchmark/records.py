"""Records of results with all their conditions, one per case, written as CSV or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.files import has_ending, write_json, write_text_atomic
from mobilemamba.text import csv_of


@dataclass(frozen=True, kw_only=True)
class Record(Case):
    """Result of one case; if it failed, ``error`` has the reason and measured values are None.

    ``layout`` is the layout used, never ``auto``; ``scan_backend`` is the backend used, empty for networks without a
    scan.
    """

    layout_chosen: bool  # whether the layout was chosen as the faster one, not requested
    batch_norms: int | None  # number of batch norms in the network that was run
    latency_ms: float | None  # of a batch (in training: of a step), median over the rounds
    latency_q1_ms: float | None  # first quartile
    latency_q3_ms: float | None  # third quartile
    images_per_second: float | None  # by the median
    spread: float | None  # (third - first quartile) / median; above about 0.1 the machine was busy
    macs: int | None  # multiply-adds per picture; in training three times those of inference, as usual
    gmacs_per_second: float | None  # billions of multiply-adds per second, by the median
    ceiling_gmacs_per_second: float | None  # of a large matrix product in this dtype, by its median in the same rounds
    ceiling_fraction: float | None  # the former divided by the latter
    peak_memory_mib: float | None  # see :mod:`mobilemamba.analysis.benchmark.memory`
    rounds: int
    calls_per_round: int | None  # batches or steps timed together
    backbone_ms: float | None = None  # median time of a detector's part, as the next three
    neck_ms: float | None = None
    head_ms: float | None = None
    rest_ms: float | None = None  # after and between the heads: boxes, regions, non-maximum suppression
    paper_top1: float | None  # published ImageNet-1k top-1 in %, if it is for this picture size
    processor: str  # name of the device
    threads: int  # number of torch's CPU threads
    tf32_matmul: bool  # whether CUDA rounds fp32 matrix products to TF32
    tf32_convolution: bool  # the same for convolutions
    versions: str  # of the libraries
    error: str


def write_records(records: Iterable[Any], path: Path) -> None:
    """Writes dataclasses of one class as CSV (one line each, None as an empty cell) or JSON, by the file's extension.

    Raises:
        OSError: If the file cannot be written; an existing file is then unchanged.
    """
    rows = [asdict(record) for record in records]
    if has_ending(path, ".json"):
        write_json(path, rows)
    else:
        write_text_atomic(path, csv_of(rows))
