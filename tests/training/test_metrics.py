"""Accuracy and loss over uneven batches, with repeats that do not count, of several networks at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import MeanMetric

from mobilemamba.data import IGNORED
from mobilemamba.scores import Score
from mobilemamba.training.metrics import ClassificationMetrics, Comparison, DeviceMean, Metrics

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
    logits, target = answers(4)
    comparison.update({"raw": logits, "ema": logits, "fused": -logits}, target)
    comparison.compute(["raw", "ema", "fused"], "val")
    comparison.update({"raw": logits}, target)
    assert set(comparison.compute(["raw"], "test")) == {"test/top1", "test/top5", "test/loss"}
    counted = {name for name, metrics in comparison.metrics.items() if metrics.counts is not None}
    assert counted == {"raw"}, "none of the evaluation before"


class NoWaiting(TorchDispatchMode):
    """On tensors without memory: what would wait for a GPU is an error. To ask for a number is one by itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name = func._schema.name.partition("::")[2]
        devices = {x.device.type for x in tensors} | {str((kwargs or {}).get("device") or "meta")}
        if name in ("index", "masked_select", "nonzero"):
            raise AssertionError(f"{name} waits for a size")
        if name in ("copy_", "_to_copy") and len(devices) > 1:
            raise AssertionError(f"{name} copies from the CPU")
        return func(*args, **(kwargs or {}))


def test_the_mode_finds_what_waits():
    x = torch.empty(3, device="meta")
    for waits in (lambda: bool(x.any()), lambda: x.copy_(torch.ones(3)), lambda: x[x > 0]):
        with pytest.raises((AssertionError, RuntimeError)), NoWaiting():
            waits()


def test_no_batch_waits_for_the_device():
    metrics = ClassificationMetrics(CLASSES).to("meta")
    comparison = Comparison(lambda: ClassificationMetrics(CLASSES), ClassificationMetrics.SCORES[0]).to("meta")
    logits, target = torch.empty(8, CLASSES, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    mean = DeviceMean().to("meta")
    with NoWaiting():
        metrics.update(logits, target)
        metrics.changed(logits, logits, target)
        mean.update(logits[0, 0], 8)
        comparison.update({"raw": logits, "ema": logits}, target)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_is_torchmetrics_own(weighted):
    ours, theirs = DeviceMean(), MeanMetric(nan_strategy="ignore")
    for number in range(4):
        value = torch.randn(5)
        value[number] = torch.nan
        weight = {"weight": torch.rand(5)} if weighted else {}
        ours.update(value, **weight)
        theirs.update(value, **weight)
    ours.update(torch.tensor(torch.nan), 8)
    ours.update(torch.tensor([torch.inf, 1.0]), torch.tensor([0, 1]))
    theirs.update(torch.tensor(1.0), 1)
    torch.testing.assert_close(ours.compute(), theirs.compute())
    ours.update(torch.tensor(torch.inf), 1)
    assert ours.compute().isinf()
