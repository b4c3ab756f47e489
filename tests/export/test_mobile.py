"""What is written for phones answers as the network does, where the runtimes are installed: CI has none of them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mobilemamba.models import load_network
from mobilemamba_command import main
from tests.export.conftest import CARD


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "packages"),
    [
        (".tflite", ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")),
        (".pte", ("executorch",)),
    ],
)
def test_it_answers_as_the_network_does(
    weights: Path, network: nn.Module, tmp_path: Path, suffix: str, packages: tuple[str, ...]
) -> None:
    for package in packages:
        pytest.importorskip(package)
    path = tmp_path / f"small{suffix}"
    main(["export", str(weights), str(path)])
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]
    in_runtime, card = load_network(path)
    assert card == CARD
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)


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
