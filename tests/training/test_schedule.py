"""The learning rate against the released ImageNet logs (300 epochs of 1251 steps, 20 of them warm-up)."""

import pytest

from mobilemamba.training.schedule import warmup_cosine

TOTAL, WARMUP = 375_300, 25_020

#: Iteration, counted from 1 -> the learning rate it was logged with, to six decimals.
LOGGED = {
    50: 0.000009,
    1_250: 0.000153,
    12_500: 0.001500,
    25_000: 0.002997,
    25_050: 0.002967,
    62_550: 0.002801,
    125_100: 0.002258,
    187_650: 0.001515,
    250_200: 0.000773,
    312_750: 0.000229,
    375_300: 0.000030,
}


@pytest.mark.parametrize(("iteration", "lr"), LOGGED.items())
def test_every_logged_value(iteration, lr):
    assert round(3e-3 * warmup_cosine(iteration - 1, TOTAL, WARMUP), 6) == lr


def test_ends_of_both_parts():
    assert warmup_cosine(0, TOTAL, WARMUP) == pytest.approx(1e-3)
    assert warmup_cosine(WARMUP - 1, TOTAL, WARMUP) == pytest.approx(1 - 0.999 / WARMUP)
    assert warmup_cosine(WARMUP, TOTAL, WARMUP) == pytest.approx(0.002967 / 0.003, abs=2e-4)  # a drop
    assert warmup_cosine(TOTAL // 2, TOTAL, WARMUP) == pytest.approx((1 + 0.01) / 2)
    assert warmup_cosine(TOTAL, TOTAL, WARMUP) == pytest.approx(0.01)
    assert warmup_cosine(TOTAL + 9_999, TOTAL, WARMUP) == pytest.approx(0.01)  # does not rise again


def test_without_warmup_it_starts_at_the_peak():
    assert warmup_cosine(0, 10, 0) == 1.0
