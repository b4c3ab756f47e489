"""What is written for ONNX Runtime answers as the network does, and says all that is needed to ask it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilemamba.export.onnx import load_onnxruntime, quantized
from mobilemamba.models import load_network, read_card
from mobilemamba_command import main
from tests.export.conftest import CARD

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    main(["export", str(weights), str(path)])
    return path


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


def test_int8_is_close_and_whole_in_the_runtime(exported: Path, network: nn.Module, tmp_path: Path) -> None:
    pictures = torch.randn(8, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = quantized(onnx.load(exported), pictures, tmp_path / "x.onnx")
    onnx.save(model, tmp_path / "x.onnx")
    in_runtime, _ = load_network(tmp_path / "x.onnx")
    with torch.no_grad():
        expected = network(pictures)
    assert 1e-4 < ((in_runtime(pictures) - expected).abs().max() / expected.abs().max()) < 0.1
    # Each convolution between conversions is one of integers in the runtime: none is computed as floats.
    wanted = {name for name, kind in _eight_bit(model) if kind == "Conv"}
    assert len(wanted) > 40
    assert not wanted & _floats(tmp_path / "x.onnx")


@pytest.mark.parametrize("norm", [True, False])
def test_int8_takes_products_that_gain(norm: bool, tmp_path: Path) -> None:
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    shapes = {"few": (16, 3, 3, 3), "many": (64, 16, 1, 1), "apart": (64, 1, 3, 3), "gated": (64, 1, 3, 3)}
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights |= {"matrix": random.standard_normal((8, 8), np.float32), "stack": np.ones((64, 8, 8), np.float32)}
    ones = {f"one{number}": np.ones(64, np.float32) for number in range(4)} if norm else {}
    nodes = [
        helper.make_node("Conv", ["pictures", "few"], ["a"], "few", pads=[1] * 4),
        helper.make_node("Conv", ["a", "many"], ["b"], "many"),
        helper.make_node("BatchNormalization", ["b", *ones], ["c"]) if norm else helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "apart"], ["e"], "apart", group=64, pads=[1] * 4),
        helper.make_node("Conv", ["e", "gated"], ["x"], "gated", group=64, pads=[1] * 4),
        helper.make_node("Sigmoid", ["x"], ["y"]),
        helper.make_node("Mul", ["x", "y"], ["z"]),
        helper.make_node("MatMul", ["z", "matrix"], ["f"], "matrix"),
        helper.make_node("MatMul", ["f", "stack"], ["g"], "stack"),
        helper.make_node("MatMul", ["g", "f"], ["h"], "attention"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [1, n, 8, 8]) for name, n in (("pictures", 3), ("h", 64))]
    constants = [array(value, name) for name, value in (weights | ones).items()]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = quantized(model, torch.randn(2, 3, 8, 8), tmp_path / "x.onnx")
    assert {name for name, _ in _eight_bit(found)} == {"many", "apart", "matrix"}
    assert not {"Relu", "BatchNormalization"} & {node.op_type for node in found.graph.node}


def _eight_bit(model: Any) -> list[tuple[str, str]]:
    """Name and kind of the products whose factors are converted from eight bits."""
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [
        (node.name, node.op_type)
        for node in products
        if all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
    ]


def _floats(path: Path) -> set[str]:
    """Names of the convolutions that ONNX Runtime computes as floats."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("runs.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.name for node in onnx.load(path.with_name("runs.onnx")).graph.node if node.op_type == "Conv"}
