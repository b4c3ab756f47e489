"""Accuracy and loss over uneven batches, with repeats that do not count, of several networks at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.data import IGNORED
from mobilemamba.scores import Score
from mobilemamba.training.metrics import ClassificationMetrics, Comparison, Metrics

CLASSES = 7


def answers(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, generator=generator)
    return logits, torch.randint(CLASSES, (count,), generator=generator)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), repeats=st.integers(0, 3))
def test_is_the_mean_over_all_pictures(sizes, repeats):
    logits, target = answers(sum(sizes))
    metrics = ClassificationMetrics(CLASSES)
    for of_batch, labels in zip(logits.split(sizes), target.split(sizes), strict=True):
        padded = torch.cat([labels, torch.full((repeats,), IGNORED)])
        metrics.update(torch.cat([of_batch, torch.randn(repeats, CLASSES)]), padded)
    found = metrics.compute()
    order = logits.argsort(1, descending=True)
    assert found["top1"].item() == pytest.approx(100 * (order[:, 0] == target).float().mean().item(), abs=1e-4)
    assert found["top5"].item() == pytest.approx(100 * (order[:, :5] == target[:, None]).any(1).float().mean().item())
    assert found["loss"].item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-4)


def test_starts_anew_after_each_result():
    metrics = ClassificationMetrics(CLASSES)
    metrics.update(*answers(5, seed=1))
    metrics.compute()
    metrics.update(*answers(8))
    alone = ClassificationMetrics(CLASSES)
    alone.update(*answers(8))
    assert metrics.compute() == alone.compute()


def test_a_batch_of_repeats_alone_changes_nothing():
    metrics = ClassificationMetrics(CLASSES)
    metrics.update(*answers(8))
    metrics.update(torch.randn(3, CLASSES), torch.full((3,), IGNORED))
    alone = ClassificationMetrics(CLASSES)
    alone.update(*answers(8))
    assert metrics.compute() == alone.compute()


def test_fewer_than_five_classes():
    metrics = ClassificationMetrics(2)
    metrics.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    found = metrics.compute()
    assert (found["top1"], found["top5"]) == (50, 100)


def test_networks_are_compared():
    logits, target = answers(10)
    worse, fused = -logits, logits.clone()
    fused[:3] = -fused[:3]  # other answers, one of them for a picture that does not count
    target[0] = IGNORED
    comparison = Comparison(lambda: ClassificationMetrics(CLASSES), ClassificationMetrics.SCORES[0])
    comparison.update({"raw": logits, "ema": worse, "fused": fused}, target)
    found = comparison.compute(["raw", "ema", "fused"], "val")
    assert found["val/fused_changed"] == 2
    assert found["val/top1_max"] == max(found["val/top1"], found["val/top1_ema"])
    assert found["val/top1"] != found["val/top1_ema"]
    alone = ClassificationMetrics(CLASSES)
    alone.update(worse, target)
    expected = alone.compute()
    assert {metric: found[f"val/{metric}_ema"] for metric in expected} == expected


def test_a_measure_changes_no_answers():
    """One that says nothing of changed answers has no number of them."""

    class Brightness(Metrics):
        def update(self, outputs, targets): ...

        def compute(self):
            return {"error": torch.tensor(1.0)}

    comparison = Comparison(Brightness, Score("error", "error", "min"))
    comparison.update({"raw": torch.ones(1), "fused": torch.ones(1)}, torch.ones(1))
    assert comparison.compute(["raw", "fused"], "val").keys() == {"val/error", "val/error_fused"}


def test_one_network_alone_has_no_other_metrics():
    comparison = Comparison(lambda: ClassificationMetrics(CLASSES), ClassificationMetrics.SCORES[0])
    comparison.update({"raw": answers(4)[0]}, answers(4)[1])
    assert set(comparison.compute(["raw"], "test")) == {"test/top1", "test/top5", "test/loss"}
