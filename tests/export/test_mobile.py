"""What is written for phones answers as the network does, where the runtimes are installed: CI has none of them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.export import export_network
from mobilemamba.models import ModelCard, load_network, optimize_for_inference, save_weights
from mobilemamba_command import main
from tests.export import test_dense
from tests.export.conftest import CARD
from tests.export.test_dense import answer, assert_same_objects, card_of, network_of, picture
from tests.export.test_lowering import small

PACKAGES = {
    ".tflite": ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    ".pte": ("executorch",),
    ".param": ("pnnx", "ncnn"),
}
VALIDATE = "--data.num_workers 0 --data.batch_size 2 --trainer.logger false --trainer.accelerator cpu"


def need(suffix: str) -> None:
    for package in PACKAGES[suffix]:
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", PACKAGES)
def test_it_answers_as_the_network_does(
    weights: Path, network: nn.Module, pictures: Path, tmp_path: Path, suffix: str
) -> None:
    need(suffix)
    path = tmp_path / f"small{suffix}"
    main(["export", str(weights), str(path)])
    beside = ["small.bin"] if suffix == ".param" else []
    assert sorted(file.name for file in tmp_path.iterdir()) == [*beside, path.name, f"{path.name}.json"]
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in tmp_path.iterdir())
    in_runtime, card = load_network(path)
    assert card == CARD
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)
    rows, losses = [], []
    for asked in (path, weights):
        main(["predict", str(pictures), "--weights", str(asked), "--output", str(tmp_path / "rows.json")])
        said = json.loads((tmp_path / "rows.json").read_text())
        rows.append([[entry["probability"] for entry in row["classes"]] for row in said])
        cli = main(["validate", "--weights", str(asked), "--data", str(pictures), *VALIDATE.split()])
        assert cli is not None
        losses.append(float(cli.trainer.callback_metrics["val/loss"]))
    torch.testing.assert_close(*map(torch.tensor, rows), rtol=0, atol=1e-5)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        ("semantic_fpn", ".tflite"),
        ("retinanet", ".tflite"),
        ("semantic_fpn", ".pte"),
        ("retinanet", ".pte"),
        ("pspnet", ".param"),
        ("ssdlite", ".param"),
    ],
)
def test_maps_and_objects_are_those_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, suffix: str
) -> None:
    need(suffix)
    monkeypatch.setitem(test_dense.CARDS, "pspnet", test_dense.CARDS["semantic_fpn"])
    weights, path = tmp_path / "w.safetensors", tmp_path / f"x{suffix}"
    save_weights(network_of(head), weights, card_of(head))
    main(["export", str(weights), str(path)])
    of = picture(128, 192 if head == "retinanet" else 128)
    found, expected = (answer(*load_network(file, verbose=False), of) for file in (path, weights))
    if "objects" in expected:
        assert_same_objects(found, expected)
    else:
        assert len(expected["classes"]) > 1
        assert (np.asarray(found["labels"]) == np.asarray(expected["labels"])).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("head", ["", "semantic_fpn"])
def test_weights_of_eight_bits_run(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    """Of the small network also with constants on the left of products, where a map has one square alone."""
    need(".tflite")
    if head:
        weights = tmp_path / "w.safetensors"
        save_weights(network_of(head), weights, card_of(head))
    main(["export", str(weights), str(tmp_path / "small.tflite"), "--dtype", "int8"])
    found = re.search(
        r"runs, and no limit holds in 8 bits: LiteRT is off by (\S+) of the largest logit", capsys.readouterr().out
    )
    assert found is not None
    assert 1e-4 < float(found[1]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("choices", [{}, {"directions": 1}, {"directions": 4, "d_state": 2}], ids=str)
def test_ncnn_takes_every_scan_at_odd_sizes(choices: dict[str, Any]) -> None:
    need(".param")
    original, x = small(**choices), torch.randn(2, 3, 67, 81)
    with torch.no_grad():
        torch.testing.assert_close(
            optimize_for_inference(original, runtime="ncnn")(x), original(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_ncnn_says_what_it_cannot_run(tmp_path: Path) -> None:
    need(".param")
    network = timm.create_model("efficientvit_m0").eval()
    with pytest.raises(ConfigError, match=r"^ncnn has no layer for Tensor.reshape of this network; choose another fo"):
        export_network(network, ModelCard("efficientvit_m0", CARD.preprocessing), tmp_path / "x.param")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_package_for_core_ml_says_what_it_is(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coremltools = pytest.importorskip("coremltools")
    main(["export", str(weights), str(tmp_path / "small.mlpackage")])
    assert "not verified: Core ML runs elsewhere" in capsys.readouterr().out
    model = coremltools.models.MLModel(str(tmp_path / "small.mlpackage"), skip_model_load=True)
    assert '"task": "classification"' in model.user_defined_metadata["model_card"]
    assert [entry.name for entry in model.get_spec().description.input] == ["pictures"]
