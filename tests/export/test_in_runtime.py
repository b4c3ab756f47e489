"""Which files are networks that a runtime computes."""

import re
from pathlib import Path

import numpy as np
import pytest

from mobilemamba.errors import WeightsError
from mobilemamba.export import FORMATS
from mobilemamba.models import load_network
from mobilemamba_command import main


@pytest.mark.parametrize("content", ["", "text", None])
def test_files_of_other_programs_are_refused(tmp_path: Path, content: str | None) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    for suffix in (".onnx", ".xml"):
        path = tmp_path / f"x{suffix}"
        if content is not None:
            path.write_text(content)
        reason = f"no weights at .*x{suffix}: expected" if content is None else f"cannot read .*x{suffix}: .*; expected"
        with pytest.raises(WeightsError, match=f"{reason} a file that mobilemamba export wrote$") as caught:
            load_network(path)
        assert "\n" not in str(caught.value)
        assert not re.search(r"\[ONNXRuntimeError\]|Exception from", str(caught.value))
        if content == "" and suffix == ".onnx":
            assert "it is empty" in str(caught.value)


def test_files_that_take_no_pictures_are_refused(tmp_path: Path) -> None:
    openvino, onnx = pytest.importorskip("openvino"), pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x = openvino.opset13.parameter([1, 3], np.float32)
    openvino.save_model(openvino.Model([openvino.opset13.relu(x)], [x]), tmp_path / "x.xml")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "x.onnx")
    for suffix, what in ((".xml", "other things than one batch"), (".onnx", r"\['x'\], and not one batch")):
        with pytest.raises(WeightsError, match=f"^cannot read .*x{suffix}: it takes {what} of pictures"):
            FORMATS[suffix].load(tmp_path / f"x{suffix}")


def test_a_network_without_a_card_is_refused(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    x = ops.parameter([1, 3, 8, 8], np.float32)
    openvino.save_model(openvino.Model([ops.reduce_mean(x, np.array([2, 3]), False)], [x]), tmp_path / "x.xml")
    for read in (load_network, lambda path: main(["benchmark", str(path)])):
        with pytest.raises(WeightsError, match=r"x.xml was written by another program: it does not describe its outp"):
            read(tmp_path / "x.xml")
