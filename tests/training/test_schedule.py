"""The learning rate against the released logs: of ImageNet, 300 epochs of 1251 steps, 20 of them warm-up; of others."""

from types import SimpleNamespace

import pytest

from mobilemamba.training.schedule import steps_of, warmup_cosine, warmup_half_cosine

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


#: The released trainings for segmentation: peak, steps, steps of the warm-up and what it starts from; iteration,
#: counted from 1 -> the rate it was logged with, to five digits.
SEGMENTATION = [
    (1.2e-4, 80_000, 500, 1e-5, {60_000: 6.0005e-5, 64_000: 4.1463e-5}),
    (1.2e-4, 160_000, 1500, 1e-6, {120_000: 6.0002e-5}),
]
#: For detection: peak, epochs, iterations of one; epoch, counted from 1 -> rate.
DETECTION = [
    (2e-4, 12, 7330, {7: 2e-4, 8: 1.866e-4, 9: 1.5e-4, 10: 1e-4, 11: 5e-5, 12: 1.3397e-5}),
    (2.4e-3, 120, 3054, {70: 2.2692e-3, 80: 1.8536e-3, 90: 1.2628e-3, 100: 6.5521e-4, 110: 1.936e-4, 120: 1.6446e-6}),
]


@pytest.mark.parametrize(("peak", "total", "warmup", "start", "logged"), SEGMENTATION)
def test_the_second_half_goes_down_in_every_step(peak, total, warmup, start, logged):
    for iteration, lr in logged.items():
        assert peak * warmup_half_cosine(iteration - 1, total, warmup, 0.0, start) == pytest.approx(lr, rel=1.3e-5)
    assert warmup_half_cosine(0, total, warmup, 0.0, start) == start
    assert {warmup_half_cosine(step, total, warmup) for step in (warmup - 1, warmup, total // 2)} == {1.0}
    assert warmup_half_cosine(total, total, warmup) == warmup_half_cosine(total + 9, total, warmup) == 0


@pytest.mark.parametrize(("peak", "epochs", "an_epoch", "logged"), DETECTION)
def test_or_once_an_epoch(peak, epochs, an_epoch, logged):
    for epoch, lr in logged.items():
        for step in ((epoch - 1) * an_epoch, epoch * an_epoch - 1):
            rate = warmup_half_cosine(step, epochs * an_epoch, 500, 0.0, 1e-5, an_epoch)
            assert peak * rate == pytest.approx(lr, rel=4e-5)
    assert 2e-4 * warmup_half_cosine(49, 87_960, 500, 0.0, 1e-5, 7330) == pytest.approx(1.9641e-5, rel=1e-5)  # logged


def test_the_warmups_steps():
    trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(setup_data=lambda: None),
        estimated_stepping_batches=9,
        num_training_batches=5,
        accumulate_grad_batches=2,
        is_global_zero=True,
        fast_dev_run=False,
    )
    assert steps_of(trainer, 1.0, None) == (9, 3), "an epoch's last step takes the batch that is left"
    assert steps_of(trainer, 1.0, 8) == (9, 8)
    with pytest.warns(UserWarning, match=r"warmup_steps=9 \(9 steps\) is no shorter than the training \(9 steps\)"):
        steps_of(trainer, 1.0, 9)
