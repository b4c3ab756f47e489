"""What the options of an export choose, and what is said of the file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.export import FORMATS, Exported, Options, export_network
from mobilemamba.export.calibration import Agreement
from mobilemamba.export.verification import Check
from mobilemamba.tools.export import describe
from tests.export.conftest import SMALL


@pytest.mark.parametrize(("suffix", "dtype"), [(".onnx", "float16"), (".xml", "float16"), (".xml", "bfloat16")])
def test_lower_precision_is_that_of_the_file_alone(suffix: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino"}[suffix])
    pytest.importorskip("onnxscript")
    layers = (nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 3))
    network, x = nn.Sequential(*layers).eval(), torch.randn(3, 3, 8, 8)
    found = export_network(network, SMALL, tmp_path / f"x{suffix}", Options(dtype=dtype)).check
    assert found is not None
    assert found.limit == {"float16": 2e-2, "bfloat16": 1e-1}[dtype]
    if dtype == "float16":  # a processor without bfloat16 computes in float32
        assert 1e-5 < found.error < 1e-2
        weights = tmp_path / ("x.bin" if suffix == ".xml" else "x.onnx")
        numbers = sum(parameter.numel() for parameter in network.parameters())
        assert 2 * numbers <= weights.stat().st_size < 4 * numbers
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    exported = FORMATS[suffix].load(tmp_path / f"x{suffix}")
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("size", "batch", "check", "lines"),
    [
        ((64, 96), None, None, ["wrote x.onnx: 64x96 px, any number of pictures, 1.5 MB"]),
        (
            None,
            2,
            Check(None, (), "Core ML runs elsewhere"),
            ["not verified: Core ML runs elsewhere", "wrote x.onnx: any size, 2 at a time, 1.5 MB"],
        ),
        (
            (64, 96),
            1,
            Check(5e-5, (1, 2), "NumPy", None, "the largest logit", 1e-4),
            [
                "verified: NumPy is off by 5.0e-05 of the largest logit, on batches of 1, 2",
                "wrote x.onnx: 64x96 px, 1 at a time, 1.5 MB",
            ],
        ),
        (
            (64, 96),
            1,
            Check(0.03, (1,), "NumPy", Agreement(1200, 97.5, pixels=True), "the largest logit", None),
            [
                "runs, and no limit holds in 8 bits: NumPy is off by 3.0e-02 of the largest logit, on batches of 1",
                "on 1,200 pictures of the calibration: 97.5 % of the pixels answered as by the original",
                "wrote x.onnx: 64x96 px, 1 at a time, 1.5 MB",
            ],
        ),
    ],
    ids=["unasked", "not here", "exact", "8 bits"],
)
def test_what_was_written_is_described(
    size: tuple[int, int] | None, batch: int | None, check: Check | None, lines: list[str]
) -> None:
    assert describe(Exported(Path("x.onnx"), 1_500_000, size, batch, check)) == lines


@pytest.mark.parametrize(
    ("options", "any_batch", "expected"),
    [
        ({}, True, None),
        ({}, False, 1),
        ({"batch": 8}, True, 8),
        ({"any_batch": True}, True, None),
        ({"any_batch": False}, True, 1),
        ({"nms": True}, True, 1),
        ({"nms": True, "batch": 4}, True, 4),
    ],
)
def test_pictures_at_a_time(
    options: dict[str, Any], any_batch: bool, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FORMATS[".onnx"], "any_batch", any_batch)
    assert Options(**options).batch_size(FORMATS[".onnx"]) == expected
