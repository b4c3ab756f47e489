"""Common rounds on clocks of our own: order, warm-up, medians, failures. Nothing here depends on speed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.analysis.timing import Timings, calls_per_round, interleave, time_calls


class FakeClock:
    """Takes the seconds of a list, one entry a call of the clock, each for a single call of what is timed."""

    def __init__(self, name, seconds, log=None):
        self.name, self.seconds, self.log = name, iter(seconds), [] if log is None else log

    def __call__(self, calls):
        self.log.append((self.name, calls))
        seconds = next(self.seconds)
        if isinstance(seconds, Exception):
            raise seconds
        return seconds * calls


def test_median_and_quartiles_by_the_definition():
    timings = Timings((5.0, 1.0, 2.0, 4.0, 3.0), calls=1)
    assert timings.median == 3
    assert timings.quartiles == (2, 4)
    assert Timings((7.0,), 1).quartiles == (7, 7)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1))
def test_the_median_lies_between_the_quartiles(rounds):
    first, third = (timings := Timings(tuple(rounds), 1)).quartiles
    assert min(rounds) <= first <= timings.median <= third <= max(rounds)


def test_every_round_has_each_clock_once_and_every_second_round_is_reversed():
    log = []
    clocks = {name: FakeClock(name, [0.1] * 9, log) for name in "abc"}
    interleave(clocks, rounds=3, seconds=0.1, warmup=0)
    assert [name for name, _ in log] == [*"aabbcc", *"abc", *"cba", *"abc"]


def test_the_first_call_does_not_count():
    assert calls_per_round(FakeClock("slow start", [100.0, 0.1, 0.1]), seconds=1, warmup=0.15) == 10


def test_rounds_are_about_as_long_for_all():
    log = []
    clocks = {"slow": FakeClock("slow", [0.5] * 5, log), "fast": FakeClock("fast", [0.01] * 5, log)}
    timings, failed = interleave(clocks, rounds=2, seconds=1, warmup=0)
    assert (timings["slow"].calls, timings["fast"].calls) == (2, 100)
    assert not failed
    assert timings["fast"].rounds == pytest.approx((0.01, 0.01))


def test_a_busy_moment_meets_everybody_and_leaves_the_medians_alone():
    clocks = {
        "a": FakeClock("a", [1, 1, 1.0, 9.0, 1.1]),
        "b": FakeClock("b", [2, 2, 2.0, 18.0, 2.2]),
    }
    timings, _ = interleave(clocks, rounds=3, seconds=1, warmup=0)
    assert (timings["a"].median, timings["b"].median) == (1.1, 2.2)


@pytest.mark.parametrize("seconds", [[RuntimeError("at once")], [1, 1, 1, RuntimeError("later"), 1]])
def test_one_that_fails_does_not_lose_the_others(seconds):
    clocks = {"bad": FakeClock("bad", seconds), "good": FakeClock("good", [1] * 9)}
    timings, failed = interleave(clocks, rounds=3, seconds=1, warmup=0)
    assert list(timings) == ["good"]
    assert len(timings["good"].rounds) == 3
    assert list(failed) == ["bad"]
    assert str(failed["bad"]) in ("at once", "later")


def test_progress_is_told_of_every_step():
    steps = []
    interleave({n: FakeClock(n, [1] * 9) for n in "ab"}, 3, 1, 0, lambda: steps.append(1))
    assert len(steps) == 2 * (3 + 1)


def test_a_gpu_is_waited_for_before_and_after(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(device))
    time_calls(lambda: done.append("call"), 2, device := torch.device("cuda", 1))
    assert done == [device, "call", "call", device]


def test_time_calls_calls_so_often():
    calls = []
    assert time_calls(lambda: calls.append(1), 5, torch.device("cpu")) > 0
    assert len(calls) == 5
