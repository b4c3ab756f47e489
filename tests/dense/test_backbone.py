"""Backbones keep their models' names, and take the weights of classifiers."""

from pathlib import Path

import pytest
import timm

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
