"""Any timm model by name, with one line for the user who mistypes."""

from typing import Any

import pytest
import timm
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.models import ArchOverrides, create_model
from mobilemamba.models.create import check_model_name


def test_choices_reach_a_mobilemamba() -> None:
    model = create_model("mobilemamba_t2", ArchOverrides(depths=(1, 1, 1)), 5, 1, drop_path_rate=0.2, distilled=True)
    assert model.config.depths == (1, 1, 1)
    assert model.config.embed_dims == timm.create_model("mobilemamba_t2").config.embed_dims
    assert model.num_classes == 5
    assert model.patch_embed[0].conv.in_channels == 1
    assert model.stages[2].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    assert len(model.forward_heads(torch.randn(2, 1, 64, 64))) == 2


def test_choices_reach_another_model() -> None:
    model = create_model("test_resnet", ArchOverrides(), 5, 1, drop_path_rate=0.1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "mobilemamba_s7"},
            "model name 'mobilemamba_s7': expected one of: mobilemamba_t2, .*did you mean mobilemamba_",
        ),
        ({"name": "%"}, "timm.list_models"),
        ({"name": "test_resnet", "arch": ArchOverrides(depths=(1,))}, "arch.depths: only the mobilemamba models"),
        ({"name": "test_resnet", "distilled": True}, "distilled: only the mobilemamba models"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "drop_path_rate=0.1: vgg11 has no such option; set it to 0"),
        ({"name": "mobilemamba_s6", "arch": ArchOverrides(depths=(1,))}, "depths=.* needs one entry for each"),
        ({"name": "resnet50.a99_in1k"}, "timm has no weights 'a99_in1k' of a resnet50; expected one of: a1_in1k"),
        ({"name": "mobilemamba_s6.in1k"}, "timm has no weights 'in1k' of a mobilemamba_s6; there are none"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        create_model(**options)
    assert "\n" not in str(error.value)


def test_every_name_of_timm_is_known() -> None:
    for name in (
        "resnet50",
        "resnet50.a1_in1k",
        "tresnet_v2_l.miil_in21k_ft_in1k",
        "efficientvit_m5",
        "mobilemamba_b4",
    ):
        check_model_name(name)
