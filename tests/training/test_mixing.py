"""Mixup and CutMix as timm's, with targets that add up and odd batches handled."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup

from mobilemamba.errors import ConfigError
from mobilemamba.training.mixing import Mixing

CLASSES = 5


def batch(size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % CLASSES


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_is_timms(mode, mixup, cutmix):
    x, target = batch()
    np.random.seed(3)  # noqa: NPY002
    expected = Mixup(mixup, cutmix, mode=mode, label_smoothing=0.0, num_classes=CLASSES)(x.clone(), target)
    np.random.seed(3)  # noqa: NPY002
    found = Mixing(mixup, cutmix, mode=mode).build(CLASSES)(x.clone(), target)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[0], x)


def test_mixup_by_hand():
    x, target = batch(2)
    np.random.seed(0)  # noqa: NPY002
    mixed, soft = Mixing(cutmix_alpha=0.0).build(CLASSES)(x.clone(), target)
    share = soft[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(
        soft,
        torch.stack(
            [
                share * F.one_hot(target[0], CLASSES) + (1 - share) * F.one_hot(target[1], CLASSES),
                share * F.one_hot(target[1], CLASSES) + (1 - share) * F.one_hot(target[0], CLASSES),
            ]
        ),
    )
    torch.testing.assert_close(mixed[0], share * x[0] + (1 - share) * x[1])


def test_smoothing_in_the_loss_equals_smoothing_in_the_targets():
    x, target = batch()
    logits = torch.randn(6, CLASSES)
    soft = []
    for smoothing in (0.0, 0.1):
        np.random.seed(1)  # noqa: NPY002
        soft.append(Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=CLASSES)(x.clone(), target)[1])
    torch.testing.assert_close(
        F.cross_entropy(logits, soft[0], label_smoothing=0.1), -(soft[1] * logits.log_softmax(1)).sum(1).mean()
    )


def test_the_last_of_an_odd_batch_is_left_out():
    x, soft = Mixing().build(CLASSES)(*batch(5))
    assert len(x) == len(soft) == 4
    torch.testing.assert_close(soft.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutmix_alpha": float("inf")}, "mixing.cutmix_alpha=inf: expected 0 or more"),
        ({"mixup_alpha": 0, "cutmix_alpha": 0}, "mixup_alpha=0, mixing.cutmix_alpha=0: .*set model.mixing to null"),
        ({"mixup_alpha": -1}, "mixup_alpha=-1"),
        ({"prob": 1.5}, "prob=1.5: a probability"),
        ({"switch_prob": -0.1}, "switch_prob=-0.1: a probability"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Mixing(**settings)
