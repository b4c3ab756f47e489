"""Verifies that an exported network gives the original's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilemamba.dense.candidates import Rules
from mobilemamba.dense.suppression import objects_of
from mobilemamba.errors import WeightsError
from mobilemamba.export.calibration import Agreement, compare
from mobilemamba.export.format import Format, Source
from mobilemamba.text import printable

#: The largest difference that passes, by dtype, as a share of the largest logit (for detectors, of a picture's side or
#: of probability 1). For int8 the answers to pictures tell more.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: Share of the objects that may differ, since of two that overlap with equal probability either may be kept.
_EQUALS = 0.05


@dataclass(frozen=True)
class Check:
    """The result of a comparison."""

    error: float | None  # largest difference as a share of ``unit``; None if it could not be run
    batches: tuple[int, ...]  # batch sizes that were tried
    runtime: str  # the runtime that was used, or why there was none
    agreement: Agreement | None = None  # on the given pictures
    unit: str = ""  # description of what ``error`` is a share of
    limit: float | None = None  # largest accepted ``error``; None if any is accepted


@torch.no_grad()
def check(network: nn.Module, form: Format, path: Path, source: Source) -> Check:
    """Compares the outputs for several batches of noise and of smooth pictures.

    Args:
        network: The original, in evaluation mode.
        form: Format of the file.
        path: The file.
        source: What the file was made from.

    Raises:
        WeightsError: If they differ by more than :data:`TOLERANCES`.
    """
    if not form.reads:
        return Check(None, (), f"{form.name} runs elsewhere; its structure was checked by its converter")
    exported = form.load(path)
    error, limit, batches = 0.0, TOLERANCES.get(source.dtype, math.inf), []
    unit = "a picture's side or a probability of 1" if source.answer == "candidates" else "the largest logit"
    for pictures in examples(source):
        expected = network(pictures)
        try:
            given = exported(pictures)
        except Exception as failure:  # runtimes raise exceptions of their own
            reason = " ".join(str(failure).split())[:200]
            taken = " x ".join(map(str, pictures.shape))
            raise WeightsError(
                f"{printable(path.name)} is not written: {exported.how} fails on pictures of {taken}: {reason}"
            ) from failure
        if source.softmax:
            expected = expected.softmax(1).clamp_min(torch.finfo(torch.float32).tiny).log()  # as those of the file
        batches.append(len(pictures))
        if given.shape != expected.shape:
            raise WeightsError(
                f"{printable(path.name)} is not written: {exported.how} answers with a shape of {tuple(given.shape)} "
                f"where the network has {tuple(expected.shape)}"
            )
        difference = ((given - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
        error = max(error, difference)
        if not difference <= limit:  # also if it is NaN
            raise WeightsError(
                f"{printable(path.name)} is not written: {exported.how} is off by {difference:.1e} of {unit}, "
                f"where {limit:.0e} is the most in {source.dtype}"
            )
    agreement = None if source.calibration is None else compare(network, exported, source.calibration, source.answer)
    batches = list(dict.fromkeys(batches))
    return Check(error, tuple(batches), exported.how, agreement, unit, TOLERANCES.get(source.dtype))


@torch.no_grad()
def check_objects(form: Format, path: Path, source: Source, rules: Rules) -> None:
    """Compares a file's objects with those chosen from its own candidates, for the pictures that :func:`check` uses.

    Raises:
        WeightsError: If they differ, apart from some of equal probability.
    """
    if source.dtype not in TOLERANCES:  # in 8 bits many have equal probabilities
        return
    candidates, objects = form.load(path), form.load_objects(path)
    for pictures in examples(source):
        given, expected = objects(pictures), objects_of(candidates(pictures), rules, source.sizes[0])
        wrong = torch.cdist(given, expected, p=math.inf).amin(-1) > TOLERANCES["float32"]  # in any order
        if (share := float(wrong.sum() / (expected[..., 4] > 0).sum().clamp_min(1))) > _EQUALS:
            raise WeightsError(
                f"{printable(path.name)} is not written: {100 * share:.0f} % of the objects that {candidates.how} "
                "chooses are not those of its candidates"
            )


def examples(source: Source) -> Iterator[Tensor]:
    """Yields batches of several sizes, of pictures as different as noise and plain colours with slow waves."""
    generator = torch.Generator().manual_seed(0)
    batches = (1, 2, 5) if source.batch is None else (source.batch, source.batch + 1, 1)
    for batch, (height, width) in zip(batches, source.sizes, strict=True):
        noise = torch.randn(batch, source.channels, height, width, generator=generator)
        plain = torch.randn(batch, source.channels, 1, 1, generator=generator).expand_as(noise)
        y, x = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 9, width)
        waves = torch.stack([(y * (1 + i % 3) + x + i).sin() for i in range(batch * source.channels)])
        yield noise
        yield plain + waves.view(noise.shape)
