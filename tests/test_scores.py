"""Scores: which of two values is better, and which score a logged name is of."""

import math

import pytest
import torch

from mobilemamba.scores import LOSS, Score, score_of

SCORES = (Score("map", "AP"), Score("map_small", "AP of small objects"), LOSS)


@pytest.mark.parametrize(
    ("logged", "key"),
    [
        ("val/map", "map"),
        ("val/map_ema", "map"),
        ("val/map_small", "map_small"),
        ("val/map_small_ema", "map_small"),
        ("val/loss", "loss"),
        ("val/map50", None),
        ("train/map", None),
        ("map", None),
    ],
)
def test_a_logged_name_is_of_the_score_that_says_most_of_it(logged: str, key: str | None) -> None:
    found = score_of(logged, SCORES)
    assert (found and found.key) == key


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_the_better_value_is_by_the_direction(kind: type) -> None:
    low, high = kind(1.0), kind(2.0)
    for score, better, worse in ((SCORES[0], high, low), (LOSS, low, high)):
        assert score.is_better(better, worse) is True
        assert score.is_better(worse, better) is False
        assert score.is_better(low, low) is False


def test_values_are_written_with_their_digits_and_unit() -> None:
    assert (SCORES[0].head, SCORES[0].written(12.345), SCORES[0].number(math.nan)) == ("AP (%)", "12.35 %", "-")
    assert (LOSS.head, LOSS.written(1.23456), LOSS.number(math.nan)) == ("loss", "1.2346", "nan")
