"""What stands in ONNX files as functions for maps of any size computes what it does for one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilemamba.export.lowering.onnx_functions import DOMAIN, with_functions
from mobilemamba.ops.scan_order import scan_order

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run(name: str, *inputs: Tensor) -> Tensor:
    """The answer of a model that calls the function alone, and does not know its sizes."""
    ranks = [inputs[0].ndim, inputs[1].ndim, inputs[0].ndim]
    entries = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
        for name, rank in zip("xyz", ranks, strict=True)
    ]
    node = onnx.helper.make_node(name, ["x", "y"], ["z"], domain=DOMAIN)
    graph = onnx.helper.make_graph([node], "call", entries[:2], entries[2:])
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = with_functions(onnx.helper.make_model(graph, opset_imports=versions, ir_version=8), 18)
    onnx.checker.check_model(model)
    assert [entry.domain for entry in model.opset_import] == [""]
    assert not model.functions
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (answer,) = session.run(None, dict(zip("xy", map(np.asarray, inputs), strict=True)))
    return torch.from_numpy(answer)


@pytest.mark.parametrize("inside", [(7,), (2, 7)], ids=["one state", "states"])
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_the_recurrence_goes_through_a_map_in_every_direction(directions: int, inside: tuple[int, ...]) -> None:
    shape = (2, directions, 3, 5, *inside)
    decay, drive = torch.rand(shape), torch.randn(shape)
    states = torch.empty(shape).flatten(2, 3)
    for direction, order in enumerate(scan_order(directions, (3, 5)).tolist()):
        h = torch.zeros(2, *inside)
        for step in order:
            h = decay.flatten(2, 3)[:, direction, step] * h + drive.flatten(2, 3)[:, direction, step]
            states[:, direction, step] = h
    given = run(f"recurrence{directions}_{len(shape)}", decay, drive)
    torch.testing.assert_close(given, states.view(shape))


def test_a_map_is_joined_from_the_pixels_of_its_squares() -> None:
    x = torch.randn(2, 3, 5, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1))
    pixels = torch.cat([padded[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)
    torch.testing.assert_close(run("join", pixels, x), x)
