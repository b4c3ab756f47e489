"""Fair timing of several functions: rounds are interleaved, so that a busy moment of the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

#: Takes a number of calls, and returns their total time in seconds.
Clock = Callable[[int], float]
Key = TypeVar("Key")

WARMUP_SECONDS = 0.5


@dataclass(frozen=True)
class Timings:
    """Seconds per call in each round."""

    rounds: tuple[float, ...]  # one value per round, in the order of measurement
    calls: int  # calls timed together in a round

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, between which half of the rounds lie."""
        if len(self.rounds) == 1:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """(third - first quartile) / median; above about 0.1 the machine was busy."""
        first, third = self.quartiles
        return (third - first) / self.median


def time_calls(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Returns the seconds of a number of calls, including the work that they queue on the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return time.perf_counter() - start


def clock_of(run: Callable[[], object], device: torch.device | str) -> Clock:
    """Returns a clock that times calls of a function on a device."""
    return lambda calls: time_calls(run, calls, torch.device(device))


def synchronize(device: torch.device) -> None:
    """Waits for the work that is queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def calls_per_round(clock: Clock, seconds: float, warmup: float = WARMUP_SECONDS) -> int:
    """Warms up, and returns how many calls fill a round.

    Args:
        clock: Called with 1 until the warm-up is over; its first call, which may compile, allocate and choose kernels,
            is not timed.
        seconds: Approximate time of a round, which has at least one call.
        warmup: Shortest warm-up in seconds.
    """
    clock(1)
    calls, elapsed = 0, 0.0
    while elapsed < warmup or calls == 0:
        elapsed += clock(1)
        calls += 1
    return max(1, round(seconds / (elapsed / calls)))


def interleave(
    clocks: Mapping[Key, Clock],
    rounds: int,
    seconds: float,
    warmup: float = WARMUP_SECONDS,
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[Key, Timings], dict[Key, Exception]]:
    """Runs each clock once per round, one after the other, in reverse order in every second round.

    A clock that fails, e.g. for lack of memory, is left out from then on; the others continue.

    Args:
        clocks: The clocks to run.
        rounds: Number of rounds.
        seconds: Approximate time of each clock per round.
        warmup: Shortest warm-up of each clock in seconds.
        advance: Called after each warm-up and each clock of each round: ``len(clocks) * (rounds + 1)`` times if none
            fails.

    Returns:
        The timings of clocks that never failed, and the errors of the others.
    """
    calls: dict[Key, int] = {}
    found: dict[Key, list[float]] = {key: [] for key in clocks}
    failed: dict[Key, Exception] = {}
    for key, clock in clocks.items():
        try:
            calls[key] = calls_per_round(clock, seconds, warmup)
        except Exception as error:  # any error of a network, which is reported in its row
            failed[key] = error.with_traceback(None)  # as the frames of a traceback would keep tensors alive
        advance()
    for number in range(rounds):
        for key in list(clocks)[:: 1 if number % 2 == 0 else -1]:
            if key in failed:
                continue
            try:
                found[key].append(clocks[key](calls[key]) / calls[key])
            except Exception as error:
                failed[key] = error.with_traceback(None)
            advance()
    return {key: Timings(tuple(found[key]), calls[key]) for key in clocks if key not in failed}, failed
