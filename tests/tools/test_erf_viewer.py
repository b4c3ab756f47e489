"""The notebook's sliders over receptive fields."""

import io

import pytest
import timm
import torch
from PIL import Image

from mobilemamba.analysis.erf import UNTRAINED
from mobilemamba.tools.erf_viewer import erf_viewer

widgets = pytest.importorskip("ipywidgets")


def test_every_choice_changes_the_picture() -> None:
    networks = {
        ("test_vit", UNTRAINED): timm.create_model("test_vit"),
        ("test_resnet", UNTRAINED): timm.create_model("test_resnet"),
    }
    box, image = erf_viewer(networks, torch.rand(2, 3, 160, 160)).children
    choices = {choice.description: choice for choice in box.children}
    seen = [image.value]
    for name, value in {
        "down": 0.2,
        "across": 0.9,
        "rule": "absolute",
        "display": "raw",
        "beside it": "test_resnet, untrained",
        "stage": 1,
        "network": "test_resnet, untrained",
    }.items():
        choices[name].value = value
        seen.append(image.value)
    sizes = [Image.open(io.BytesIO(png)).size for png in seen]
    assert len(set(seen)) == len(seen)
    assert sizes[5][1] > sizes[4][1]  # a second network
    assert sizes[6][0] < sizes[5][0]  # a single stage


def test_a_stage_that_a_network_lacks_shows_nothing() -> None:
    networks = {(name, UNTRAINED): timm.create_model(name) for name in ("test_vit", "test_resnet")}
    box, image = erf_viewer(networks, torch.rand(1, 3, 160, 160)).children
    network, _, stage, *_ = box.children
    stage.value = 4
    assert image.value == b""
    network.value = "test_resnet, untrained"
    assert Image.open(io.BytesIO(image.value)).size
