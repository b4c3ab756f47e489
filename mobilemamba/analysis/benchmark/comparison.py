"""What a table of records says: cost against pixels, and speed at equal accuracy."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.paper import family, published_top1
from mobilemamba.analysis.benchmark.records import Record

#: What two records must share to be compared: device, dtype, mode, training or not, batch.
Conditions = tuple[str, str, str, bool, int]
#: In place of a mode: each network's own fastest.
FASTEST = "each in its fastest mode"
#: Whose points a line is drawn through, see :func:`~mobilemamba.analysis.benchmark.paper.family`; and how far it is
#: drawn on beyond its ends, in points of top-1.
_RIVAL, _REACH = "efficientvit", 1.0


def grouped(records: Iterable[Record]) -> dict[Conditions, list[Record]]:
    """Records that have results, by their conditions."""
    groups: dict[Conditions, list[Record]] = {}
    for record in records:
        if not record.error:
            shared = record.device, record.dtype, record.mode, record.train, record.batch
            groups.setdefault(shared, []).append(record)
    return groups


def fastest(records: Iterable[Record]) -> list[Record]:
    """Of each network the one record, among those that differ in the mode alone, with the most pictures a second.

    A network that fails in every mode is there with the first failure.
    """
    found: dict[Case, Record] = {}
    for record in records:
        case = Case(**{field.name: getattr(record, field.name) for field in fields(Case)})
        place = replace(case, mode="", layout="", scan_backend="")
        if place not in found or (record.images_per_second or 0) > (found[place].images_per_second or 0):
            found[place] = record
    return list(found.values())


def with_fastest(records: Sequence[Record]) -> list[Record]:
    """And those of :func:`fastest` once more, under a mode of their own, where there are several modes."""
    if len({record.mode for record in records}) == 1:
        return list(records)
    return [*records, *(replace(record, mode=FASTEST) for record in fastest(records))]


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The p of ``seconds = c * pixels ** p``, by least squares of the logarithms.

    Args:
        sizes: Sides of square pictures in pixels, two different ones at least.
        seconds: Time for a picture of each.
    """
    pixels = [math.log(size**2) for size in sizes]
    return statistics.linear_regression(pixels, [math.log(value) for value in seconds]).slope


def exponents(records: Iterable[Record]) -> dict[tuple[str, Conditions], float]:
    """The exponent of cost against pixels for each model and conditions with two sizes or more."""
    found = {}
    for shared, group in grouped(records).items():
        for model in dict.fromkeys(record.model for record in group):
            own = [record for record in group if record.model == model]
            if len({record.size for record in own}) > 1:
                times = [record.latency_ms for record in own if record.latency_ms is not None]
                found[model, shared] = exponent([record.size for record in own], times)
    return found


def line(points: Sequence[tuple[float, float]], top1: float) -> float:
    """Throughput at an accuracy on the line through a family's points, its logarithm being linear between two.

    Args:
        points: (top-1, throughput), two different accuracies at least; beyond the outermost the last piece goes on.
        top1: Where.
    """
    points = sorted(points)
    pieces = list(itertools.pairwise(points))
    (left, slow), (right, fast) = next((piece for piece in pieces if top1 <= piece[1][0]), pieces[-1])
    share = (top1 - left) / (right - left)
    return math.exp(math.log(slow) + share * (math.log(fast) - math.log(slow)))


def at_equal_top1(records: Iterable[Record]) -> dict[tuple[str, Conditions], float]:
    """How many times as fast each other model is as the line through EfficientViT's points, at its published top-1.

    Models more than a point of top-1 beyond the line's ends are left out.

    Args:
        records: Those of EfficientViT, the paper's main rival, too.
    """
    found = {}
    for shared, group in grouped(records).items():
        known = [(r, r.paper_top1, r.images_per_second) for r in group if r.paper_top1 and r.images_per_second]
        points = [(top1, speed) for record, top1, speed in known if family(record.model) == _RIVAL]
        accuracies = {top1 for top1, _ in points}
        if len(accuracies) < 2:
            continue
        for record, top1, speed in known:
            near = min(accuracies) - _REACH <= top1 <= max(accuracies) + _REACH
            if family(record.model) != _RIVAL and near:
                found[record.model, shared] = speed / line(points, top1)
    return found


def against_the_front(
    records: Iterable[Record], *, best: bool = False
) -> dict[tuple[str, Conditions], tuple[float, str]]:
    """How many times as fast each of ours is as the fastest other network that is at least as accurate, and which.

    Networks without a published accuracy at the measured size are left out, and ours that no other is as accurate as.

    Args:
        records: See :func:`~mobilemamba.analysis.benchmark.networks.measure`.
        best: Compare the accuracies of the best recipes; else those of trainings without a teacher.
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
        for model, is_ours, top1, speed in speeds:
            rivals = [(fast, name) for name, theirs, accuracy, fast in speeds if not theirs and accuracy >= top1]
            if is_ours and rivals:
                fast, name = max(rivals)
                found[model, shared] = speed / fast, name
    return found
