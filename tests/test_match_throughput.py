"""Channels for equal throughput: the search on speeds that are known, and the script on small networks."""

import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "experiments/match_throughput.py"))
match_width = SCRIPT["match_width"]
Dims = tuple[int, ...]

CONFIG = """
model: {class_path: ClassificationTask, init_args: {name: mobilemamba_t2}}
sweep:
  rows:
    wide: {model.arch.embed_dims: [32, 48, 64], model.arch.depths: [1, 1, 1]}
    own: {}
"""  # the second row has nothing to scale


class Clock:
    """Networks whose time is a power of their channels."""

    def __init__(self, power: float, as_wide_as: float):
        self.power, self.target = power, as_wide_as
        self.asked: list[Dims] = []

    def speed(self, dims: Dims) -> float:
        self.asked.append(dims)
        return float((self.target / dims[-1]) ** self.power)


def test_it_finds_the_width_of_equal_speed() -> None:
    clock = Clock(power=2, as_wide_as=480)
    dims, ratio = match_width((80, 160, 320), clock.speed, tolerance=0.02)
    assert dims == (120, 240, 480)
    assert ratio == pytest.approx(1)
    assert clock.asked[0] == (80, 160, 320)
    assert len(clock.asked) <= 5


def test_what_is_equal_already_stays() -> None:
    clock = Clock(power=2, as_wide_as=320)
    assert match_width((80, 160, 320), clock.speed, tolerance=0.02) == ((80, 160, 320), 1)
    assert len(clock.asked) == 1


@settings(max_examples=50)
@given(st.floats(0.5, 3), st.floats(64, 2048), st.integers(8, 100))
@example(power=0.5, target=77.0, first=64)
def test_it_comes_as_near_as_the_channels_allow(power: float, target: float, first: int) -> None:
    clock = Clock(power, target)
    dims, ratio = match_width((8 * first,), clock.speed, tolerance=0.01, tries=12)
    assert all(dim % 8 == 0 for dim in dims)
    assert ratio == Clock(power, target).speed(dims)
    assert abs(dims[0] - target) <= max(16, 0.05 * target)
    assert len(clock.asked) == len(set(clock.asked)) <= 12


def test_a_network_that_is_always_too_slow_ends_at_the_narrowest() -> None:
    dims, ratio = match_width((32, 64), lambda dims: 0.5 * 8 / dims[0], tolerance=0.02)
    assert (dims[0], ratio) == (8, 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("short_benchmarks")
def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(CONFIG)
    quick = ["--size", "32", "--batch", "1", "--rounds", "1", "--seconds", "0.01", "--reference", "mobilemamba_t2"]
    monkeypatch.setattr(sys, "argv", ["match_throughput.py", "--config", str(path), *quick])
    SCRIPT["main"]()
    out = capsys.readouterr().out
    assert out.startswith("wide: [")
    assert "of the speed of mobilemamba_t2" in out
    assert "own" not in out
