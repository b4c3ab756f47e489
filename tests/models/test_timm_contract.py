"""What timm asks of a model, of the six sizes and of EMO's four."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureGraphNet
from timm.models._manipulate import group_with_matcher
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import EMO, VARIANTS, MobileMamba

Network = MobileMamba | EMO
Build = Callable[..., Network]
EMO_DIMS = {
    "emo_1m": (32, 48, 80, 168),
    "emo_2m": (32, 48, 120, 200),
    "emo_5m": (48, 72, 160, 288),
    "emo_6m": (48, 72, 160, 320),
}
SIX = list(VARIANTS)
SIDES = {name: variant.img_size for name, variant in VARIANTS.items()} | dict.fromkeys(EMO_DIMS, 224)
DIMS = {name: variant.config.embed_dims for name, variant in VARIANTS.items()} | EMO_DIMS
BLOCKS = {name: sum(variant.config.depths) for name, variant in VARIANTS.items()}
BLOCKS |= {"emo_1m": 11, "emo_2m": 14, "emo_5m": 14, "emo_6m": 14}  # beside the first of each stage
STRIDES = {3: (16, 32, 64), 4: (4, 8, 16, 32)}
ALL = list(DIMS)


@pytest.fixture(scope="module", params=["mobilemamba_t2", "emo_1m"])
def network(trained: Build, request: pytest.FixtureRequest) -> Network:
    return trained(request.param)


@pytest.fixture(params=["mobilemamba", "emo"])
def small(tiny: Build, request: pytest.FixtureRequest) -> Network:
    if request.param == "mobilemamba":
        return tiny()
    return EMO((1, 1, 2, 2), (8, 16, 24, 32), (2, 2, 2, 2), (0, 0, 8, 16), num_classes=7).eval()


@pytest.mark.parametrize("name", ALL)
def test_default_cfg(name: str) -> None:
    model = timm.create_model(name)
    cfg, side = model.default_cfg, SIDES[name]
    assert cfg["input_size"] == (3, side, side)
    assert cfg["pool_size"] == (-(-side // model.feature_info[-1]["reduction"]),) * 2
    modules = dict(model.named_modules())
    first, classifier = modules[cfg["first_conv"]], modules[cfg["classifier"]]
    assert isinstance(first, nn.Conv2d)
    assert first is next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(classifier, nn.Linear)
    assert classifier is model.get_classifier()
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} < model.state_dict().keys()
    assert timm.data.resolve_data_config({}, model=model)["input_size"] == (3, side, side)


@pytest.mark.parametrize("name", ALL)
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True).eval()
    dims = DIMS[name]
    strides = STRIDES[len(dims)]
    assert model.feature_info.channels() == list(dims)
    assert model.feature_info.reduction() == list(strides)
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 128))
    assert [m.shape[1:] for m in maps] == [(d, 64 // r, 128 // r) for d, r in zip(dims, strides, strict=True)]


def test_features_only_of_chosen_stages(network: Network) -> None:
    model = timm.create_model(network.default_cfg["architecture"], features_only=True, out_indices=(0, 2)).eval()
    strides = STRIDES[len(network.stages)]
    assert model.feature_info.reduction() == [strides[0], strides[2]]
    # The same tensors as the whole network's.
    missing, unexpected = model.load_state_dict(
        {re.sub(r"^(stages|patch_embed)\.(\w+)", r"\1_\2", n): t for n, t in network.state_dict().items()}, strict=False
    )
    assert not missing
    assert all(name.startswith(("head.", "norm.", "stages_3.")) for name in unexpected)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = network.forward_intermediates(pictures, indices=[0, 2], intermediates_only=True)
        for ours, theirs in zip(model(pictures), whole, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_features_of_the_traced_graph(small: Network) -> None:
    """What ``features_only`` takes with ``feature_cls="fx"``."""
    graph = FeatureGraphNet(small, (0, 2))
    pictures = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        whole = small.forward_intermediates(pictures, indices=[0, 2], intermediates_only=True)
        for traced, direct in zip(graph(pictures), whole, strict=True):
            assert torch.equal(traced, direct)


def test_forward_is_features_then_head(network: Network) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = network.forward_features(pictures)
        pooled = network.forward_head(features, pre_logits=True)
        side = 64 // STRIDES[len(network.stages)][-1]
        assert features.shape == (2, network.num_features, side, side)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        assert pooled.shape == (2, network.head_hidden_size)
        assert torch.equal(network(pictures), network.forward_head(features))
        head = network.head if isinstance(network, MobileMamba) else network.get_classifier()
        torch.testing.assert_close(head(pooled), network(pictures))


def test_forward_intermediates(network: Network) -> None:
    pictures = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        last, maps = network.forward_intermediates(pictures)
        assert torch.equal(last, network.forward_features(pictures))
        assert torch.equal(network.norm(maps[-1]), last)
        assert torch.equal(network.forward_intermediates(pictures, 1, norm=True, intermediates_only=True)[0], last)
        stopped, (middle,) = network.forward_intermediates(pictures, [1], norm=True, stop_early=True)
        assert torch.equal(middle, maps[1])
        assert torch.equal(stopped, maps[1])
        assert len(network.forward_intermediates(pictures, 2, intermediates_only=True)) == 2
    with pytest.raises(ConfigError, match="'NHWC'"):
        network.forward_intermediates(pictures, output_fmt="NHWC")


def test_prune_intermediate_layers(small: Network) -> None:
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = small.forward_intermediates(pictures, [1], intermediates_only=True)[0]
        assert small.prune_intermediate_layers([1]) == [1]
        assert len(small.stages) == 2
        assert torch.equal(small(pictures), expected)


def test_pruning_the_ends_alone(small: Network) -> None:
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, maps = small.forward_intermediates(pictures)
        small.prune_intermediate_layers([len(small.stages) - 1])
        assert torch.equal(small(pictures), expected)
        small.prune_intermediate_layers([len(small.stages) - 1], prune_norm=True)
        assert torch.equal(small(pictures), maps[-1])


@pytest.mark.parametrize("name", ALL)
def test_without_classifier(name: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    pictures = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        pooled = model(pictures)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(pooled, model.forward_features(pictures).mean((2, 3)))


def test_reset_classifier(small: Network) -> None:
    dim, pictures = small.num_features, torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = small.forward_features(pictures)
        small.reset_classifier(5)
        assert small.num_classes == 5
        assert small(pictures).shape == (2, 5)
        small.reset_classifier(5, "max")
        assert torch.equal(small.forward_head(features, pre_logits=True), features.amax((2, 3)))
        small.reset_classifier(0)
        assert small(pictures).shape == (2, dim)
        small.reset_classifier(0, "")
        assert torch.equal(small(pictures), features)
        small.double().reset_classifier(3, "avg")
        assert small(pictures.double()).dtype == torch.float64  # a fresh classifier keeps the network's precision
        assert small(pictures.double()).shape == (2, 3)


@pytest.mark.parametrize("name", ["mobilemamba_t2", "emo_1m"])
def test_pooling_of_twice_the_features(name: str) -> None:
    model = timm.create_model(name, global_pool="catavgmax", num_classes=5).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(pictures)
        both = torch.cat((features.mean((2, 3)), features.amax((2, 3))), 1)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), both)
        assert model(pictures).shape == (2, 5)
        model.reset_classifier(3)
        assert model(pictures).shape == (2, 3)
        model.reset_classifier(3, "max")
        assert model.get_classifier().in_features == model.num_features


@pytest.mark.parametrize("name", ["mobilemamba_t2", "emo_1m"])
@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"in_chans": 0}, "in_chans=0: expected 1 or more"),
        ({"num_classes": -1}, "num_classes=-1: expected 1 or more, or 0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate=1.5: expected 0 to 1"),
        ({"global_pool": "mean"}, "global_pool='mean': expected one of avg, max, avgmax, catavgmax, or ''"),
        ({"global_pool": "CatAvgMax"}, "global_pool='CatAvgMax': expected one of"),
        ({"global_pool": ""}, "global_pool='' with num_classes=1000: a classifier needs a pooling"),
    ],
)
def test_ends_that_cannot_be_are_refused(name: str, choices: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        timm.create_model(name, **choices)
    if choices.keys() <= {"num_classes", "global_pool"}:
        model = timm.create_model(name)
        with pytest.raises(ConfigError, match=re.escape(why)):
            model.reset_classifier(**{"num_classes": 1000, **choices})
        assert model.num_classes == 1000


@pytest.mark.parametrize("name", ["mobilemamba_t2", "emo_1m"])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_picture_channels(name: str, in_chans: int) -> None:
    model = timm.create_model(name, in_chans=in_chans).eval()
    with torch.no_grad():
        assert model(torch.randn(1, in_chans, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("coarse", [False, True], ids=["fine", "coarse"])
def test_group_matcher_covers_each_parameter_once(name: str, coarse: bool) -> None:
    model = timm.create_model(name)
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=coarse), return_values=False)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    blocks = len(DIMS[name]) if coarse else BLOCKS[name]
    # Stem, stages or blocks (a downsampling goes with the first block after it), head.
    assert len(groups) == 1 + blocks + 1
    of = {name: group for group, names in groups.items() for name in names}
    assert of[f"{model.default_cfg['first_conv']}.weight"] == min(groups)
    assert of[f"{model.default_cfg['classifier']}.weight"] == max(groups)
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


@pytest.mark.parametrize("name", ALL)
def test_pretrained_is_refused_clearly(name: str) -> None:
    assert timm.list_models(name) == [name]
    assert not timm.list_models(name, pretrained=True)
    with pytest.raises(Exception, match=r"[Pp]retrained|weights"):
        timm.create_model(name, pretrained=True)
