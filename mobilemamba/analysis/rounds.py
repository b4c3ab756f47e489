"""Timing several things fairly: their rounds taken in turn, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

#: Given a number of calls, the seconds they took together.
Clock = Callable[[int], float]
Key = TypeVar("Key")

WARMUP_SECONDS = 0.5


@dataclass(frozen=True)
class Timings:
    """Seconds of one call, as found in each round."""

    rounds: tuple[float, ...]  # one value a round, in the order they were taken
    calls: int  # calls timed together in a round

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third; between them lie half of the rounds."""
        if len(self.rounds) == 1:
            return self.rounds[0], self.rounds[0]
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third


def time_calls(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds that so many calls take, the work they queue on the device included."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return time.perf_counter() - start


def clock_of(run: Callable[[], object], device: torch.device | str) -> Clock:
    """Times calls of a function on a device."""
    return lambda calls: time_calls(run, calls, torch.device(device))


def synchronize(device: torch.device) -> None:
    """Waits for what is queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def calls_per_round(clock: Clock, seconds: float, warmup: float = WARMUP_SECONDS) -> int:
    """Warms up, and says how many calls fill a round.

    Args:
        clock: Is called with 1 until the warm-up is over; its first call may compile, allocate and choose kernels, and
            does not count.
        seconds: About how long a round shall take; it has one call at least.
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
    """Times each clock once a round, one after the other, every second round in the opposite order.

    One that fails, for want of memory say, is left out from then on; the others go on.

    Args:
        clocks: What to time.
        rounds: Number of rounds.
        seconds: About how long each clock runs in a round.
        warmup: Shortest warm-up of each clock in seconds.
        advance: Is called after each warm-up and each clock of each round: ``len(clocks) * (rounds + 1)`` times
            if none fails.

    Returns:
        The timings of those that never failed, and the errors of the others.
    """
    calls: dict[Key, int] = {}
    found: dict[Key, list[float]] = {key: [] for key in clocks}
    failed: dict[Key, Exception] = {}
    for key, clock in clocks.items():
        try:
            calls[key] = calls_per_round(clock, seconds, warmup)
        except Exception as error:  # whatever a network may raise; it is reported in its row
            failed[key] = error.with_traceback(None)  # whose frames would keep tensors alive
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
