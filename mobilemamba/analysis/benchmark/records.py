"""Results with all that they depend on, one record a case, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.files import write_json, write_text_atomic


@dataclass(frozen=True, kw_only=True)
class Record(Case):
    """What was found for one case; measured values are None where ``error`` says why there are none.

    ``layout`` is one of the two, and ``scan_backend`` what was chosen; empty for networks without a scan.
    """

    layout_chosen: bool  # found to be the faster one, and not asked for
    batch_norms: int | None  # layers that were run
    latency_ms: float | None  # of a batch (in training: of a step), the median over the rounds
    latency_q1_ms: float | None  # first quartile
    latency_q3_ms: float | None  # third quartile
    images_per_second: float | None  # by the median
    spread: float | None  # (third - first quartile) / median; more than about 0.1 says that the machine was busy
    macs: int | None  # multiply-adds for a picture; in training three times those of inference, as usual
    gmacs_per_second: float | None  # billions of multiply-adds a second, by the median
    ceiling_gmacs_per_second: float | None  # of a large matrix product in that dtype, by its median in the same rounds
    ceiling_fraction: float | None  # one over the other
    peak_memory_mib: float | None  # see :mod:`mobilemamba.analysis.benchmark.memory`
    rounds: int
    calls_per_round: int | None  # batches or steps timed together
    backbone_ms: float | None = None  # of a detector, as a median; and what follows
    neck_ms: float | None = None
    head_ms: float | None = None
    rest_ms: float | None = None  # after and between the heads: boxes, regions, the choice among overlapping ones
    paper_top1: float | None  # published for ImageNet-1k in %, at the size that it is of
    processor: str  # the device in words
    threads: int  # of torch on the CPU
    tf32_matmul: bool  # whether CUDA rounds fp32 matrix products to TF32
    tf32_convolution: bool  # the same for convolutions
    versions: str  # of the libraries, in words
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
