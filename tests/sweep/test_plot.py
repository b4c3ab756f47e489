from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mobilemamba.sweep import plot as module
from mobilemamba.training.metrics import ClassificationMetrics

KNOWN = {
    "data": "sample",
    "device": "CPU",
    "status": "finished",
    "reason": None,
    "shared_device": False,
    "throughput_conditions": "",
    "epochs": 2,
    "train_pictures": 8000,
    "val_pictures": 2000,
    "img_size": 48,
    "seed": 0,
    "scores": ClassificationMetrics.SCORES,
    **dict.fromkeys(("top5", "top1_ema", "top5_ema", "throughput_spread", "hours", "peak_mem_gib")),
    **dict.fromkeys(("paper_top1", "paper_flops_m", "paper_throughput")),
}


def row(name: str, top1: float | None, flops: float = 620.0, **values: Any) -> dict[str, Any]:
    return {"run": name, "group": name, "top1": top1, "flops_m": flops, "throughput": 100.0, **KNOWN, **values}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn instead of being saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(module, "_add_grid", figures.append)
    return figures


def test_labels_of_rows_closer_than_their_bars_stand_apart(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [row(f"xi_{i}", 86.5 + 0.05 * i, 620 + i % 2) for i in range(6)]
    module.plot(rows, "sweep", tmp_path / "plot.png", "")
    (figure,) = drawn
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines to their points
        assert len(boxes) == len(rows)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_a_bar_is_the_deviation_of_the_seeds_or_else_the_standard_error(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [row("a", 80.0, val_pictures=2000), *(row(f"b{x}", x, group="b", val_pictures=2000) for x in (80.0, 82.0))]
    module.plot(rows, "sweep", tmp_path / "plot.png", "")
    plain = [replace(score, share=False) for score in KNOWN["scores"]]
    module.plot([row("a", 80.0, val_pictures=2000, scores=plain)], "sweep", tmp_path / "plot.png", "")
    bars = [container.lines[2][0].get_segments()[0] for figure in drawn for container in figure.axes[0].containers]
    halves = [(high - low) / 2 for (_, low), (_, high) in bars]
    assert halves == pytest.approx([100 * (0.8 * 0.2 / 2000) ** 0.5, 2**0.5, 0])


def test_conditions_that_differ_are_said_with_their_rows_above_the_panels(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [row(name, 80.0, img_size=size) for name, size in (("a", 32), ("b", 48), ("c", 48), ("d", 64))]
    module.plot(rows, "sweep", tmp_path / "plot.png", "")
    (figure,) = drawn
    figure.draw_without_rendering()
    (text,) = [text for text in figure.texts if "px" in text.get_text()]
    endings = [line.partition(" px, ")[2] for line in text.get_text().splitlines()]
    assert endings == ["seed 0: a.", "seed 0: b, c.", "seed 0: d."]
    assert not any(text.get_window_extent().overlaps(axis.get_window_extent()) for axis in figure.axes)


def test_the_common_plot_tells_many_sweeps_apart(drawn: list[Figure], tmp_path: Path) -> None:
    sweeps = {f"sweep_{i}": [row("a", 80.0 + i, throughput=None if i else 100.0)] for i in range(12)}
    module.plot_together({**sweeps, "unfinished": [row("a", None)]}, tmp_path / "plot.png")
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(sweeps), "each once, and none without a point"
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(sweeps)


def test_no_name_is_a_formula(drawn: list[Figure], tmp_path: Path) -> None:
    module.plot([row(r"$\frac{x$ $\alpha$", 80.0, data="$_{$")], "50 % $^{$", tmp_path / "plot.png", "$\\bad$")
    texts = drawn[0].findobj(Text)
    assert any(text.get_text() == r"$\frac{x$ $\alpha$" for text in texts)
    assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


def test_a_panel_of_what_was_not_measured_is_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    for missing in ({"throughput": None}, {"throughput": None, "flops_m": None}):
        rows = [row("a", 80.0) | missing, row("b", 81.0, paper_top1=78.0, paper_flops_m=600.0) | missing]
        module.plot(rows, "sweep", tmp_path / "plot.png", "")
    module.plot_together({"one": [row("a", 80.0, throughput=None)]}, tmp_path / "plot.png")
    labels = [[axis.get_xlabel().partition(" ")[0] for axis in figure.axes] for figure in drawn]
    assert labels == [["FLOPs", "FLOPs"], ["row", "FLOPs"], ["FLOPs"]]
    assert all(axis.collections or axis.containers for figure in drawn for axis in figure.axes)
    names = [text.get_text() for text in drawn[1].axes[0].texts]
    assert sorted(names) == ["a", "b"]


def test_throughputs_measured_in_two_ways_are_said_to_be(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [row("a", 80.0), row("b", 81.0, throughput_conditions="12 img/s (median of 5 rounds, spread 3%), batch 8")]
    module.plot(rows[:1], "one", tmp_path / "plot.png", "")
    module.plot(rows, "two", tmp_path / "plot.png", "")
    labels = [figure.axes[1].get_xlabel() for figure in drawn]
    assert labels == ["throughput (img/s), CPU", "throughput (img/s), CPU; in 2 ways, which do not compare"]
