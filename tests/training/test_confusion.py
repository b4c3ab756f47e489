"""Which classes are taken for which: the counts, what is read from them, and their pictures."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_confusion_matrix

from mobilemamba.analysis import figures
from mobilemamba.data import IGNORED
from mobilemamba.scores import Score
from mobilemamba.training import plots
from mobilemamba.training.confusion import ConfusionCounts, class_scores
from mobilemamba.training.metrics import ClassificationMetrics

#: A letter that matplotlib's usual font lacks, and another of those that it brings has.
FRAKTUR = "\N{MATHEMATICAL FRAKTUR CAPITAL G}"


def counted(classes: int, pictures: int, right: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (pictures,), generator=generator)
    answer = torch.where(torch.rand(pictures, generator=generator) < right, target, (target + 1) % classes)
    metric = ConfusionCounts(classes)
    metric.update(answer, target)
    return metric.compute()


def test_the_counts_are_the_confusion_matrix_without_what_does_not_count() -> None:
    logits, target = torch.randn(40, 5), torch.randint(5, (40,))
    target[7] = IGNORED
    metrics = ClassificationMetrics(5)
    for part in range(4):
        metrics.update(logits[part::4], target[part::4])
    metrics.update(torch.randn(2, 5), torch.full((2,), IGNORED))
    metrics.compute()
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    matrix[metrics.counts[:, 0], metrics.counts[:, 1]] = metrics.counts[:, 2]
    counts = target != IGNORED
    assert torch.equal(matrix, multiclass_confusion_matrix(logits[counts].argmax(1), target[counts], 5))
    metrics.compute()
    assert len(metrics.counts) == 0, "each result starts anew"


def test_many_classes_take_no_more_memory_than_pictures_with_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        counts = counted(20_000, 50)
    finally:
        torch.use_deterministic_algorithms(False)
    assert counts.shape[0] <= 50
    assert counts[:, 2].sum() == 50


def test_what_is_known_of_each_class() -> None:
    counts = torch.tensor([[0, 0, 9], [0, 2, 1], [1, 0, 2], [1, 1, 1], [1, 2, 3], [1, 4, 1], [2, 2, 4]])
    scores = class_scores(counts)
    assert [tuple(score) for score in scores] == [
        (0, 10, 9, 2, 1, 11),
        (1, 7, 1, 2, 3, 1),
        (2, 4, 4, None, 0, 8),
        (4, 0, 0, None, 0, 1),  # only ever an answer
    ]
    assert [score.iou for score in scores] == [9 / 12, 1 / 7, 4 / 8, 0]
    assert [score.accuracy for score in scores[:3]] == [0.9, 1 / 7, 1]
    assert math.isnan(scores[3].accuracy)


@pytest.mark.parametrize("classes", [1, 10, 40, 200])
def test_a_picture_names_few_classes_and_of_many_the_confused_pairs(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
    names = [f"$a$ very long name of a class, which ends in {index}" for index in range(classes)]
    plots.draw_confusion(counted(classes, 900), names, tmp_path / "x.png", "t")
    labels = [label.get_text() for label in seen[0].axes[0].get_yticklabels()]
    assert len(labels) == len(set(labels)) == min(classes, 30 if classes == 200 else 40)
    assert labels[0].startswith("$a$ very long n…"), "what is cut is marked, and the end tells names apart"
    assert (tmp_path / "x.png").exists()


def test_the_most_frequent_mistakes_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()
    monkeypatch.setattr(plots, "png_figure", lambda *_, **__: contextlib.nullcontext(figure))
    mistakes = [[index, index + 1, 1 + index % 7 * 10] for index in range(99)]
    counts = torch.tensor([*mistakes, [5, 5, 1000]])
    plots.draw_confusion(counts, [f"c{index}" for index in range(100)], tmp_path / "x.png", "t")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()[:2]] == ["c6 → c7", "c13 → c14"]
    assert [text.get_text() for text in axis.texts[:2]] == ["61 of 61", "61 of 61"]
    assert "30 most frequent of 99 kinds of mistake" in axis.get_xlabel()
    assert axis.yaxis_inverted()


def test_names_in_any_letters_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an installed font that has them; otherwise by the class's number."""
    drawn: list[str] = []
    monkeypatch.setattr(plots, "_matrix", lambda axis, counts, names, _: drawn.extend(names))
    names = ["cat", "caf\udce9", "two\nlines", "кошка", FRAKTUR, "\U000e0041", "$x^2_"]
    plots.draw_confusion(counted(7, 70), names, tmp_path / "x.png", f"caf\udce9 {FRAKTUR}")
    assert drawn == ["cat", r"caf\xe9", r"two\nlines", "кошка", names[4], "class 5", "$x^2_"]
    monkeypatch.undo()
    plots.draw_confusion(counted(7, 70), names, tmp_path / "x.png", "caf\udce9")
    plots.draw_curves(
        [{"epoch": 1.0, "lr": 0.1}], ClassificationMetrics.SCORES, tmp_path / "y.png", "caf\udce9 \U000e0041"
    )
    assert (tmp_path / "y.png").stat().st_size > 1000


def test_scores_of_other_units_have_panels_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()
    monkeypatch.setattr(plots, "png_figure", lambda *_, **__: contextlib.nullcontext(figure))
    known = {"train/loss": 1.0, "val/loss": 1.0, "val/hits_ema": 50.0, "val/off_x": 2.0, "val/off": 50.0, "lr": 0.1}
    known["val/hits"] = float("nan")  # of nothing: no line and no name
    scores = [Score("hits", "hits"), Score("off_x", "offset", "min", unit="px"), Score("off", "share")]
    plots.draw_curves([{"epoch": 1.0, **known}], scores, tmp_path / "x.png", "two heads")
    assert {axis.get_ylabel(): [line.get_label() for line in axis.lines] for axis in figure.axes} == {
        "loss": ["train/loss", "val/loss"],
        "score (%)": ["val/hits_ema", "val/off"],
        "score (px)": ["val/off_x"],
        "learning rate": ["lr"],
    }


def test_the_font_is_one_that_has_the_letter() -> None:
    assert figures._font_with("a") == "DejaVu Sans"
    other = figures._font_with(FRAKTUR)
    assert other not in (None, "DejaVu Sans")
    assert figures.legible(f"a{FRAKTUR}\U000e0041") == f"a{FRAKTUR}\\U000e0041"
