"""What is written for ONNX Runtime answers as the network does, and says all that is needed to ask it."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mobilemamba.export.quiet import load_onnxruntime
from mobilemamba.models import load_network, read_card
from mobilemamba_command import main
from tests.export.conftest import CARD

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_it_reports_nothing_to_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    load_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_it_answers_as_the_network_does(exported: Path, network: nn.Module) -> None:
    in_runtime, card = load_network(exported)
    assert card == CARD == read_card(exported)
    for batch in (1, 7):
        x = torch.randn(batch, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)


def test_one_file_answers_pictures_of_any_size(weights: Path, network: nn.Module, tmp_path: Path) -> None:
    main(["export", str(weights), str(tmp_path / "small.onnx"), "--size", "dynamic"])
    (pictures,) = onnx.load(tmp_path / "small.onnx").graph.input
    assert [dim.dim_param for dim in pictures.type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    in_runtime, card = load_network(tmp_path / "small.onnx")
    assert card == CARD
    for height, width in ((32, 32), (64, 96), (129, 70), (47, 300)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)


def test_it_names_what_goes_in_and_no_source_files(exported: Path) -> None:
    model = onnx.load(exported)
    sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, sizes) == ("pictures", ["batch", 3, 64, 96])
    assert model.graph.output[0].name == "logits"
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["model_card"])["class_names"] == list(CARD.class_names)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b".py" not in exported.read_bytes()


def test_predict_and_validate_take_it(
    exported: Path, weights: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for file in (exported, weights):
        main(["predict", str(pictures), "--weights", str(file), "--output", str(tmp_path / "x.json")])
        found.append(json.loads((tmp_path / "x.json").read_text()))
    assert "ONNX Runtime" in capsys.readouterr().err
    for ours, theirs in zip(*found, strict=True):
        assert ours["picture"] == theirs["picture"]
        assert [entry["name"] for entry in ours["classes"]] == [entry["name"] for entry in theirs["classes"]]
    right = [Path(answer["picture"]).parent.name == answer["classes"][0]["name"] for answer in found[0]]
    cli = main(["validate", "--weights", str(exported), "--data", str(pictures), "--data.val_fraction", "0.999"])
    assert cli is not None
    assert 0 < cli.trainer.callback_metrics["val/top1"].item() == pytest.approx(100 * sum(right) / 12)
    said = capsys.readouterr().out
    assert "as exported" in said
    assert "as trained" not in said
