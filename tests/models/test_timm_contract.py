"""What timm asks of a model, of the six sizes."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, MobileMamba

Build = Callable[..., MobileMamba]
SIX = list(VARIANTS)


@pytest.fixture(scope="module")
def t2(trained: Build) -> MobileMamba:
    return trained("mobilemamba_t2")


@pytest.mark.parametrize("name", SIX)
def test_default_cfg(name: str) -> None:
    model = timm.create_model(name)
    cfg, side = model.default_cfg, VARIANTS[name].img_size
    assert cfg["input_size"] == (3, side, side)
    assert cfg["pool_size"] == (-(-side // 64),) * 2
    modules = dict(model.named_modules())
    first, classifier = modules[cfg["first_conv"]], modules[cfg["classifier"]]
    assert isinstance(first, nn.Conv2d)
    assert first is next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(classifier, nn.Linear)
    assert classifier is model.get_classifier()
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} < model.state_dict().keys()
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == (3, side, side)


@pytest.mark.parametrize("name", SIX)
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True).eval()
    dims = VARIANTS[name].config.embed_dims
    assert model.feature_info.channels() == list(dims)
    assert model.feature_info.reduction() == [16, 32, 64]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 128))
    assert [m.shape[1:] for m in maps] == [(d, 64 // r, 128 // r) for d, r in zip(dims, (16, 32, 64), strict=True)]


def test_features_only_of_chosen_stages(t2: MobileMamba) -> None:
    model = timm.create_model("mobilemamba_t2", features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.reduction() == [16, 64]
    # The same tensors as the whole network's.
    missing, unexpected = model.load_state_dict(
        {re.sub(r"^(stages|patch_embed)\.", r"\1_", n): t for n, t in t2.state_dict().items()}, strict=False
    )
    assert not missing
    assert all(name.startswith("head.") for name in unexpected)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = t2.forward_intermediates(pictures, indices=[0, 2], intermediates_only=True)
        for ours, theirs in zip(model(pictures), whole, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_forward_is_features_then_head(t2: MobileMamba) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = t2.forward_features(pictures)
        pooled = t2.forward_head(features, pre_logits=True)
        assert features.shape == (2, t2.num_features, 1, 1)
        assert pooled.shape == (2, t2.head_hidden_size)
        assert torch.equal(t2(pictures), t2.forward_head(features))
        torch.testing.assert_close(t2.head(pooled), t2(pictures))


def test_forward_intermediates(t2: MobileMamba) -> None:
    pictures = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        last, maps = t2.forward_intermediates(pictures)
        assert torch.equal(last, t2.forward_features(pictures))
        assert torch.equal(maps[-1], last)
        (middle,) = t2.forward_intermediates(pictures, [1], stop_early=True, intermediates_only=True)
        assert torch.equal(middle, maps[1])
        assert len(t2.forward_intermediates(pictures, 2, intermediates_only=True)) == 2
    with pytest.raises(ConfigError, match="'NHWC'"):
        t2.forward_intermediates(pictures, output_fmt="NHWC")


def test_prune_intermediate_layers(tiny: Build) -> None:
    model, pictures = tiny(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(pictures, [1], intermediates_only=True)[0]
        assert model.prune_intermediate_layers([1]) == [1]
        assert len(model.stages) == 2
        assert torch.equal(model(pictures), expected)


@pytest.mark.parametrize("name", SIX)
def test_without_classifier(name: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    pictures = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        pooled = model(pictures)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(pooled, model.forward_features(pictures).mean((2, 3)))


def test_reset_classifier(tiny: Build) -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model.reset_classifier(5)
        assert model.num_classes == 5
        assert model(pictures).shape == (2, 5)
        model.reset_classifier(5, "max")
        pooled = model.forward_head(model.forward_features(pictures), pre_logits=True)
        assert torch.equal(pooled, model.forward_features(pictures).amax((2, 3)))
        model.reset_classifier(0)
        assert model(pictures).shape == (2, 64)
        model.reset_classifier(0, "")
        assert model(pictures).shape == (2, 64, 1, 2)
        model.reset_classifier(3, "avg")
        assert model(pictures).shape == (2, 3)


def test_a_fresh_classifier_keeps_the_network_s_precision(tiny: Build) -> None:
    model = tiny().double()
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_picture_channels(in_chans: int) -> None:
    model = timm.create_model("mobilemamba_t2", in_chans=in_chans).eval()
    with torch.no_grad():
        assert model(torch.randn(1, in_chans, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
def test_group_matcher_covers_each_parameter_once(name: str, coarse: bool) -> None:
    model = timm.create_model(name)
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=coarse), return_values=False)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    blocks = 3 if coarse else sum(VARIANTS[name].config.depths)
    assert (
        len(groups) == 1 + blocks + 1
    )  # stem, stages or blocks (a downsampling goes with the first block after it), head
    of = {name: group for group, names in groups.items() for name in names}
    assert of["patch_embed.0.conv.weight"] == min(groups)
    assert of["head.linear.weight"] == max(groups)
    order = [group for name, group in of.items() if name.startswith("stages.")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", SIX)
def test_no_weight_decay_names_parameters(name: str) -> None:
    model = timm.create_model(name)
    names = model.no_weight_decay()
    assert names < {name for name, _ in model.named_parameters()}
    assert len(names) == 5 * sum(VARIANTS[name].config.depths)  # A_log, D, dt_bias and two scales a block


def test_state_dict_loads_strictly(tiny: Build) -> None:
    source, target = (
        tiny(),
        timm.create_model("mobilemamba_s6", embed_dims=(32, 48, 64), depths=(1, 1, 1), num_classes=7),
    )
    target.load_state_dict(source.state_dict(), strict=True)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source(pictures), target.eval()(pictures))


@pytest.mark.parametrize("name", SIX)
def test_pretrained_is_refused_clearly(name: str) -> None:
    assert name in timm.list_models("mobilemamba*")
    assert name not in timm.list_models("mobilemamba*", pretrained=True)
    with pytest.raises(Exception, match=r"[Pp]retrained|weights"):
        timm.create_model(name, pretrained=True)
