"""A second classifier that learns from a teacher's answers: ``distilled=True``."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.errors import ConfigError
from mobilemamba.models import MobileMamba, fuse_norms

pytestmark = pytest.mark.kernels

Build = Callable[..., MobileMamba]


@pytest.fixture(scope="module")
def two_heads(tiny: Build) -> MobileMamba:
    return tiny(distilled=True)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_the_logits_are_the_mean_of_both_classifiers(tiny: Build, train: bool) -> None:
    model, pictures = tiny(distilled=True).train(train), torch.randn(4, 3, 64, 96)
    with torch.no_grad():
        logits, (of_class, of_teacher) = model(pictures), model.forward_heads(pictures)
    assert isinstance(logits, torch.Tensor)
    assert of_class.shape == of_teacher.shape == logits.shape == (4, 7)
    assert (of_class - of_teacher).norm() > 0.1 * of_class.norm()
    torch.testing.assert_close(logits, (of_class + of_teacher) / 2)


def test_the_first_classifier_is_that_of_an_undistilled_network(tiny: Build, two_heads: MobileMamba) -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 64)
    missing, unexpected = model.load_state_dict(two_heads.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("head_dist.") for name in unexpected)
    with torch.no_grad():
        torch.testing.assert_close(two_heads.forward_heads(pictures)[0], model(pictures))


@pytest.mark.parametrize("both", [False, True], ids=["mean", "pair"])
def test_gradients_reach_both_classifiers(tiny: Build, both: bool) -> None:
    model, pictures = tiny(distilled=True).train(), torch.randn(2, 3, 96, 128)
    loss = sum(x.square().sum() for x in model.forward_heads(pictures)) if both else model(pictures).square().sum()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without


def test_both_classifiers_keep_timms_contract(tiny: Build) -> None:
    model, pictures = tiny(distilled=True), torch.randn(2, 3, 64, 96)
    assert model.get_classifier() == (model.head.linear, model.head_dist.linear)
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), return_values=False)
    assert {"head.linear.weight", "head_dist.linear.weight"} < set(groups[max(groups)])
    with torch.no_grad():
        features = model.forward_features(pictures)
        assert torch.equal(model.forward_head(features), model(pictures))
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
        model.reset_classifier(5)
        assert [head.out_features for head in model.get_classifier()] == [5, 5]
        assert model(pictures).shape == (2, 5)
        model.reset_classifier(0)
        torch.testing.assert_close(model(pictures), features.mean((2, 3)))
    fresh = timm.create_model("mobilemamba_t2", distilled=True, num_classes=0).eval()
    assert fresh(pictures).shape == (2, 368)
    assert timm.create_model("mobilemamba_t2", distilled=True, features_only=True).feature_info.reduction() == [
        16,
        32,
        64,
    ]


def test_both_classifiers_fuse(two_heads: MobileMamba) -> None:
    fused, pictures = fuse_norms(two_heads), torch.randn(2, 3, 64, 96)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in fused.modules())
    assert fused.get_classifier() == (fused.head, fused.head_dist)
    with torch.no_grad():
        torch.testing.assert_close(fused(pictures), two_heads(pictures), rtol=1e-4, atol=1e-5)


def test_a_second_classifier_is_all_that_is_added() -> None:
    plain, distilled = (timm.create_model("mobilemamba_t2", distilled=distilled) for distilled in (False, True))
    added = distilled.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in added} == {"head_dist"}
    head = 2 * 368 + 369 * 1000  # a norm, then a linear layer
    more, fewer = complexity(distilled), complexity(plain)
    assert more.params - fewer.params == head
    assert more.macs - fewer.macs == 368 * 1000
    assert more.flops - fewer.flops == 368 * 1000 + 2 * 368


def test_one_classifier_gives_no_two_answers(tiny: Build) -> None:
    with pytest.raises(ConfigError, match="distilled=True"):
        tiny().forward_heads(torch.randn(1, 3, 64, 64))
