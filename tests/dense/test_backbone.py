"""Backbones keep their models' names, and take the weights of classifiers."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from mobilemamba.dense import create_backbone, load_backbone
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, save_weights
from tests.states import assert_same_state

ARCH = ArchOverrides(embed_dims=(32, 48, 64), depths=(1, 1, 1))


@pytest.mark.parametrize("name", ["mobilemamba_t2", "emo_1m", "efficientvit_m5", "mobilenetv2_100", "resnet18"])
def test_names_are_the_models(name: str) -> None:
    backbone, model = create_backbone(name), timm.create_model(name)
    assert backbone.model.state_dict().keys() <= model.state_dict().keys()
    assert backbone.feature_info.reduction()[-1] in (32, 64)


def test_an_attention_that_knew_one_size_takes_any() -> None:
    model = timm.create_model("efficientformer_l1").eval()
    backbone = create_backbone("efficientformer_l1").eval()
    attention = backbone.get_submodule("model.stages.3.blocks.4.token_mixer")
    nn.init.normal_(attention.attention_biases)  # they begin at 0
    model.load_state_dict(backbone.get_submodule("model").state_dict(), strict=False)
    with torch.no_grad():
        pictures = torch.randn(1, 3, 224, 224)
        expected = model.forward_intermediates(pictures, intermediates_only=True)
        assert all(map(torch.allclose, backbone(pictures), expected))
        copied = copy.deepcopy(backbone)
        assert [x.shape[1:] for x in copied(torch.randn(1, 3, 70, 93))[2:]] == [(224, 5, 6), (448, 3, 3)]
        assert copied(torch.randn(1, 3, 96, 160))[-1].shape == (1, 448, 3, 5)
        table = attention.attention_biases.unflatten(1, (7, 7))
        biases = copied.get_submodule("model.stages.3.blocks.4.token_mixer").get_attention_biases(torch.device("cpu"))
    assert torch.equal(biases[:, 4, 4], table[:, 0, 0])  # of a cell with itself
    assert torch.allclose(biases[:, 0, 14], table[:, 6, 6])  # from corner to corner
    assert torch.allclose(biases[:, 12, 2], table[:, 6, 0])  # over all rows
    assert torch.allclose(biases[:, 7, 11], table[:, 3, 1:3].mean(1))  # half of all rows, a quarter of the columns
    assert torch.equal(biases, biases.transpose(1, 2))


def test_a_classifiers_weights_load(tmp_path: Path) -> None:
    arch = {"distilled": True} | ARCH.given()
    classifier = timm.create_model("mobilemamba_s6", num_classes=5, **arch)
    preprocessing = Preprocessing.of_model("mobilemamba_s6")
    card = ModelCard("mobilemamba_s6", preprocessing, num_classes=5, arch=ARCH.given(), distilled=True)
    save_weights(classifier, tmp_path / "best.safetensors", card)
    backbone = create_backbone("mobilemamba_s6", ARCH)
    load_backbone(backbone, tmp_path / "best.safetensors", "mobilemamba_s6", verbose=False)
    assert_same_state(backbone.model, classifier)
    with pytest.raises(WeightsError, match=r"is of another mobilemamba_s6: .* build the backbone with the same arch"):
        load_backbone(create_backbone("mobilemamba_s6"), tmp_path / "best.safetensors", "mobilemamba_s6", verbose=False)
    with pytest.raises(ConfigError, match=r"best\.safetensors is of a mobilemamba_s6, and the model named is resnet18"):
        load_backbone(create_backbone("resnet18"), tmp_path / "best.safetensors", "resnet18", verbose=False)
