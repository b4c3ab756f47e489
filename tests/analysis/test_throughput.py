"""Throughput: the arithmetic on a clock of our own, the conditions on a real network. Nothing here depends on speed."""

import dataclasses
import re
from typing import ClassVar

import pytest
import torch
from torch import nn

from mobilemamba.analysis import throughput
from mobilemamba.analysis.throughput import device_name, measure_throughput, time_batches
from mobilemamba.errors import ConfigError


class Probe(nn.Module):
    """Remembers how it was called."""

    calls: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        self.calls.append((self.training, torch.is_inference_mode_enabled(), tuple(x.shape), x.stride()[1] == 1))
        return self.norm(x)


@pytest.fixture
def probe():
    Probe.calls = []
    return Probe()


def test_median_spread_and_latency(probe, monkeypatch):
    # compile call, warm-up of 0.5 s in one batch, then rounds of round(2 / 4 / 0.5) = 1 batch
    seconds = iter([9.0, 0.5, 0.4, 0.5, 0.8, 0.5])
    monkeypatch.setattr(throughput, "time_batches", lambda *_: next(seconds))
    result = measure_throughput(probe, 16, batch_size=10, rounds=4, budget_s=2)
    assert result.images_per_second == pytest.approx(20)
    assert result.spread == pytest.approx((10 / 0.4 - 10 / 0.8) / 20)
    assert result.latency_ms == pytest.approx(500)
    assert (result.rounds, result.batches_per_round) == (4, 1)


def test_rounds_fill_the_budget(probe, monkeypatch):
    asked = []

    def clock(model, pictures, batches):
        asked.append(batches)
        return 0.125 * batches

    monkeypatch.setattr(throughput, "time_batches", clock)
    result = measure_throughput(probe, 16, batch_size=1, rounds=3, budget_s=6)
    assert result.batches_per_round == 16  # 6 s / 3 rounds / 0.125 s
    assert asked == [1] + 4 * [1] + 3 * [16]
    assert result.images_per_second == pytest.approx(8)


def test_network_runs_in_inference_on_what_is_described(probe):
    probe.train()
    result = measure_throughput(probe, (16, 24), batch_size=2, rounds=2, budget_s=0.001)
    assert set(Probe.calls) == {(False, True, (2, 3, 16, 24), True)}
    assert (result.batch_size, result.img_size, result.dtype) == (2, (16, 24), "float32")
    assert result.layout == "channels_last"
    assert result.batch_norms == 1
    assert result.images_per_second > 0


def test_model_and_random_state_stay_as_they_are(probe):
    probe.train()
    state = torch.get_rng_state()
    measure_throughput(probe, 16, batch_size=2, rounds=1, budget_s=0.001)
    assert probe.training
    assert torch.equal(torch.get_rng_state(), state)
    assert probe.norm.num_batches_tracked == 0


def test_dtype_is_the_model_s():
    assert measure_throughput(nn.Conv2d(3, 4, 1).bfloat16(), 8, 1, rounds=1, budget_s=0.001).dtype == "bfloat16"


def test_default_batch_on_a_cpu(probe):
    assert measure_throughput(probe, 4, rounds=1, budget_s=0.001).batch_size == 32


def test_a_round_is_all_its_batches(probe):
    assert time_batches(probe.eval(), torch.zeros(1, 3, 4, 4), 5) > 0
    assert len(Probe.calls) == 5


def test_description_names_every_condition(probe):
    result = measure_throughput(probe, 16, batch_size=2, rounds=3, budget_s=0.001)
    line = dataclasses.replace(result, images_per_second=1234.5, spread=0.05, batch_norms=0).describe()
    assert "\n" not in line
    assert re.match(r"1234 img/s \(median of 3 rounds, spread 5%\), batch 2 at 16x16, float32, channels_last, ", line)
    assert "no batch norms" in line
    assert device_name("cpu") in line
    assert torch.__version__ in line


def test_cpu_in_words():
    threads = torch.get_num_threads()
    assert re.fullmatch(rf".+, {threads} threads?", device_name("cpu"))


@pytest.mark.parametrize("name", ["rounds", "batch_size", "budget_s"])
def test_nonsense_is_refused(probe, name):
    with pytest.raises(ConfigError, match=f"{name}=0"):
        measure_throughput(probe, 16, **{name: 0})
