"""What is written for phones answers as the network does, where the runtimes are installed: CI has none of them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.export import export_network
from mobilemamba.models import ModelCard, load_network, optimize_for_inference
from mobilemamba_command import main
from tests.export.conftest import CARD
from tests.export.test_form import small


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "packages"),
    [
        (".tflite", ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")),
        (".pte", ("executorch",)),
        (".param", ("pnnx", "ncnn")),
    ],
)
def test_it_answers_as_the_network_does(
    weights: Path, network: nn.Module, tmp_path: Path, suffix: str, packages: tuple[str, ...]
) -> None:
    for package in packages:
        pytest.importorskip(package)
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


@pytest.mark.slow
def test_weights_of_eight_bits_run(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"):
        pytest.importorskip(package)
    main(["export", str(weights), str(tmp_path / "small.tflite"), "--dtype", "int8"])
    assert "verified: LiteRT is off by" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("choices", [{}, {"directions": 1}, {"directions": 4, "d_state": 2}], ids=str)
def test_ncnn_takes_every_scan_at_odd_sizes(choices: dict[str, Any]) -> None:
    for package in ("pnnx", "ncnn"):
        pytest.importorskip(package)
    original, x = small(**choices), torch.randn(2, 3, 67, 81)
    with torch.no_grad():
        torch.testing.assert_close(
            optimize_for_inference(original, runtime="ncnn")(x), original(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_ncnn_says_what_it_cannot_run(tmp_path: Path) -> None:
    for package in ("pnnx", "ncnn"):
        pytest.importorskip(package)
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
