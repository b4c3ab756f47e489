from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.sweep.record import conditions
from mobilemamba.sweep.seeds import over_seeds, spread
from mobilemamba.training.metrics import ClassificationMetrics


def entry(run: str, group: str, **values: Any) -> dict[str, Any]:
    measured = ("top1", "top5", "top1_ema", "top5_ema", "throughput", "throughput_spread", "hours", "peak_mem_gib")
    known = {"status": "finished", "reason": None, "shared_device": False, "throughput_conditions": None}
    return {
        "run": run,
        "group": group,
        "scores": ClassificationMetrics.SCORES,
        **known,
        **dict.fromkeys(measured),
        **values,
    }


def test_mean_and_deviation_of_each_group() -> None:
    rows = [
        entry("a,0", "a", top1=70.0, hours=1.0),
        entry("b", "b", top1=60.0),
        entry("a,1", "a", top1=74.0, hours=2.0),
    ]
    a, b = over_seeds(rows)
    assert (a["run"], a["top1"], a["seeds"], a["hours"], a["top5"]) == ("a", 72.0, 2, 1.5, None)
    assert a["top1_sd"] == pytest.approx(8**0.5), "of a sample: (n - 1)"
    assert (b["run"], b["top1"], b["top1_sd"], b["seeds"]) == ("b", 60.0, None, 1)
    assert spread(a, "top1") == " ± 2.83"
    assert spread(b, "top1") == spread(a, "top5") == ""


def test_a_group_that_is_not_finished_says_so() -> None:
    rows = [entry(f"a,{seed}", "a", top1=70.0 + seed) for seed in range(2)]
    rows += [entry("a,2", "a", status="failed", reason="out of memory", shared_device=True)]
    (merged,) = over_seeds(rows)
    assert (merged["status"], merged["reason"]) == ("2 finished, 1 failed", "out of memory")
    assert spread(merged, "top1") == " ± 0.71 (2)"
    assert merged["shared_device"]


def test_the_conditions_are_those_of_a_row_that_is_finished() -> None:
    rows = [entry("a,0", "a", status="failed", reason="out of memory", data=None, epochs=3)]
    rows += [entry("a,1", "a", top1=70.0, data="pets (24/8)", epochs=10)]
    (merged,) = over_seeds(rows)
    assert (merged["run"], merged["top1"], merged["data"], merged["epochs"]) == ("a", 70.0, "pets (24/8)", 10)


def test_speeds_of_seeds_that_were_measured_differently_are_said_to_be() -> None:
    ways = ["10 img/s (median of 5 rounds, spread 3%), batch 8, cpu (2 threads), x", "9e+01 img/s (median of 5), y"]
    one, two = (entry(f"a,{seed}", "a", throughput=10.0, throughput_conditions=way) for seed, way in enumerate(ways))
    assert conditions(one) == "batch 8, cpu (2 threads), x"
    assert [conditions(merged) for merged in over_seeds([one, {**one, "run": "b"}])] == [conditions(one)]
    assert conditions(over_seeds([one, two])[0]) == "batch 8, cpu (2 threads), x; other seeds: y"


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9))
def test_any_values(values: list[float]) -> None:
    (merged,) = over_seeds([entry(f"a,{seed}", "a", top1=value) for seed, value in enumerate(values)])
    assert merged["top1"] == pytest.approx(fmean(values))
    assert merged["top1_sd"] == pytest.approx(stdev(values))
