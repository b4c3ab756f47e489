"""Comparison of records: cost over pixels, and speed at equal accuracy."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.published import family, published_top1
from mobilemamba.analysis.benchmark.records import Record

#: Conditions that comparable records share: device, dtype, mode, whether training, batch size.
Conditions = tuple[str, str, str, bool, int]
#: Replaces the mode in records of each network's fastest mode.
FASTEST = "each in its fastest mode"
#: The :func:`~mobilemamba.analysis.benchmark.published.family` whose points the line goes through.
_RIVAL = "efficientvit"
#: Points of top-1 by which the line is extrapolated beyond its ends.
_REACH = 1.0


def grouped(records: Iterable[Record]) -> dict[Conditions, list[Record]]:
    """Groups the records that have results by their conditions."""
    groups: dict[Conditions, list[Record]] = {}
    for record in records:
        if not record.error:
            shared = record.device, record.dtype, record.mode, record.train, record.batch
            groups.setdefault(shared, []).append(record)
    return groups


def fastest(records: Iterable[Record]) -> list[Record]:
    """Returns the fastest of each network's records that differ only in the mode.

    For a network that fails in every mode, it is the record of the first failure.
    """
    found: dict[Case, Record] = {}
    for record in records:
        case = Case(**{field.name: getattr(record, field.name) for field in fields(Case)})
        place = replace(case, mode="", layout="", scan_backend="")
        if place not in found or (record.images_per_second or 0) > (found[place].images_per_second or 0):
            found[place] = record
    return list(found.values())


def with_fastest(records: Sequence[Record]) -> list[Record]:
    """Returns the records and, if there are several modes, also those of :func:`fastest` with the mode ``FASTEST``."""
    if len({record.mode for record in records}) == 1:
        return list(records)
    return [*records, *(replace(record, mode=FASTEST) for record in fastest(records))]


def exponent(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """Fits the p of ``seconds = c * pixels ** p`` by least squares of the logarithms.

    Args:
        pixels: Pixels of a picture, at least two different numbers.
        seconds: Time per picture for each of them.
    """
    return statistics.linear_regression([*map(math.log, pixels)], [*map(math.log, seconds)]).slope


def exponents(records: Iterable[Record]) -> dict[tuple[str, Conditions], float]:
    """Returns the exponent of cost over pixels for each model and conditions with at least two sizes."""
    found = {}
    for shared, group in grouped(records).items():
        for model in dict.fromkeys(record.model for record in group):
            own = [record for record in group if record.model == model and record.latency_ms is not None]
            pixels = [math.prod(record.sides) for record in own]
            if len(set(pixels)) > 1:
                found[model, shared] = exponent(pixels, [record.latency_ms for record in own if record.latency_ms])
    return found


def line(points: Sequence[tuple[float, float]], top1: float) -> float:
    """Returns the throughput at an accuracy by interpolating the logarithm of throughput linearly between points.

    Args:
        points: (top-1, throughput), with at least two different accuracies; extrapolates beyond the outermost points.
        top1: Accuracy at which to interpolate.
    """
    points = sorted(points)
    pieces = list(itertools.pairwise(points))
    (left, slow), (right, fast) = next((piece for piece in pieces if top1 <= piece[1][0]), pieces[-1])
    share = (top1 - left) / (right - left)
    return math.exp(math.log(slow) + share * (math.log(fast) - math.log(slow)))


def at_equal_top1(records: Iterable[Record]) -> dict[tuple[str, Conditions], float]:
    """Returns each model's speed relative to the line through EfficientViT's points at the model's published top-1.

    Models more than a point of top-1 beyond the line's ends are left out.

    Args:
        records: Records, including those of EfficientViT, the paper's main rival.
    """
    found = {}
    for shared, group in grouped(records).items():
        known = [(r, r.paper_top1, r.images_per_second) for r in group if r.paper_top1 and r.images_per_second]
        known.sort(key=lambda entry: entry[2])  # of a network in several layouts, the fastest is the last and counts
        points = {top1: speed for record, top1, speed in known if family(record.model) == _RIVAL}
        if len(points) < 2:
            continue
        for record, top1, speed in known:
            if family(record.model) != _RIVAL and min(points) - _REACH <= top1 <= max(points) + _REACH:
                found[record.model, shared] = speed / line([*points.items()], top1)
    return found


def against_the_front(
    records: Iterable[Record], *, best: bool = False
) -> dict[tuple[str, Conditions], tuple[float, str]]:
    """Returns the speed of our models relative to the fastest other network that is at least as accurate, and its name.

    Networks without a published accuracy at the measured size are left out, and so are our models if no other network
    is as accurate.

    Args:
        records: See :func:`~mobilemamba.analysis.benchmark.networks.measure`.
        best: Compare accuracies of the best recipes rather than those of trainings without a teacher.
    """
    found = {}
    for shared, group in grouped(records).items():
        speeds = [
            (record.model, record.is_ours, top1, record.images_per_second)
            for record in group
            if record.images_per_second
            and record.height is None
            and (top1 := published_top1(record.model, record.size, best=best)) is not None
        ]
        for model, is_ours, top1, speed in sorted(speeds, key=lambda entry: entry[3]):
            rivals = [(fast, name) for name, theirs, accuracy, fast in speeds if not theirs and accuracy >= top1]
            if is_ours and rivals:
                fast, name = max(rivals)
                found[model, shared] = speed / fast, name
    return found
