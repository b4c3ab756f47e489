from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from mobilemamba.sweep import plot as module

KNOWN = {
    "data": "sample",
    "device": "CPU",
    "status": "finished",
    "reason": None,
    "shared_device": False,
    "epochs": 2,
    "train_pictures": 8000,
    "val_pictures": 2000,
    "img_size": 48,
    "seed": 0,
    **dict.fromkeys(("top5", "top1_ema", "throughput_spread", "hours", "peak_mem_gib")),
    **dict.fromkeys(("paper_top1", "paper_flops_m", "paper_throughput")),
}


def row(name: str, top1: float | None, flops: float = 620.0, **values: Any) -> dict[str, Any]:
    return {"run": name, "group": name, "top1": top1, "flops_m": flops, "throughput": 100.0, **KNOWN, **values}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn instead of being saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(module, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_labels_of_rows_closer_than_their_bars_stand_apart(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [row(f"xi_{i}", 86.5 + 0.05 * i, 620 + i % 2) for i in range(6)]
    module.plot(rows, "sweep", tmp_path / "plot.png", "")
    (figure,) = drawn
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) == len(rows)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_the_common_plot_tells_many_sweeps_apart(drawn: list[Figure], tmp_path: Path) -> None:
    sweeps = {f"sweep_{i}": [row("a", 80.0 + i, throughput=None if i else 100.0)] for i in range(12)}
    module.plot_together({**sweeps, "unfinished": [row("a", None)]}, tmp_path / "plot.png")
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(sweeps), "each once, and none without a point"
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(sweeps)
