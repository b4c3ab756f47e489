"""What is computed in eight bits in ONNX files is so in ONNX Runtime too, and what gains nothing is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilemamba.export.onnx_int8 import quantized
from mobilemamba.models import load_network

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


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
