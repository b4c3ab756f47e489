"""What is written for OpenVINO answers as the network does, in float and in int8."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mobilemamba.export.openvino import load_openvino
from mobilemamba.models import load_network
from mobilemamba_command import main
from tests.export.conftest import CARD

pytest.importorskip("openvino")


def test_it_reports_nothing_to_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    load_openvino()
    telemetry = importlib.reload(importlib.import_module("openvino.tools.ovc.telemetry_utils"))
    assert telemetry.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_it_answers_as_the_network_does(weights: Path, network: nn.Module, tmp_path: Path) -> None:
    main(["export", str(weights), str(tmp_path / "small.xml"), "--batch", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.bin", "small.xml"]
    in_runtime, card = load_network(tmp_path / "small.xml")
    assert card == CARD
    x = torch.randn(5, 3, 64, 96)  # two, two and one beside which nothing stands
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)


def test_one_file_answers_pictures_of_any_size(weights: Path, network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    main(["export", str(weights), str(tmp_path / "small.xml"), "--size", "dynamic", "--no-verify"])
    in_runtime, _ = load_network(tmp_path / "small.xml")
    for height, width in ((64, 96), (129, 70)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(in_runtime(x), network(x), rtol=1e-4, atol=1e-5)


def test_int8_is_close_and_smaller_and_compared_on_the_pictures(
    weights: Path, pictures: Path, network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf")
    path = tmp_path / "small.xml"
    # A graph of any number of pictures takes much longer to follow; 12 of them are no whole batches of 5.
    options = ["--dtype", "int8", "--calibration", str(pictures), "--softmax", "--batch", "5"]
    main(["export", str(weights), str(path), *options])
    printed = capsys.readouterr().out
    assert printed.startswith("runs, and no limit holds in 8 bits: OpenVINO")
    said = re.search(r"on 12 pictures .*: ([\d.]+) % answered .*; top-1 ([\d.]+) % before, ([\d.]+) % after", printed)
    assert said is not None
    cli = main(["validate", "--weights", str(weights), "--data", str(pictures), "--data.val_fraction", "0.999"])
    assert cli is not None
    assert float(said[2]) == pytest.approx(cli.trainer.callback_metrics["val/top1"].item(), abs=0.01)

    in_runtime, _ = load_network(path)
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        expected = network(x).log_softmax(1)
    assert 1e-4 < ((in_runtime(x) - expected).abs().max() / expected.abs().max()) < 0.1, "quantised, and no more"
    assert path.with_suffix(".bin").stat().st_size < weights.stat().st_size / 2
    main(["predict", str(pictures), "--weights", str(path), "--output", str(tmp_path / "x.json")])
    found = json.loads((tmp_path / "x.json").read_text())
    assert sum(entry["probability"] for entry in found[0]["classes"]) == pytest.approx(1, abs=1e-4)
    right = [Path(answer["picture"]).parent.name == answer["classes"][0]["name"] for answer in found]
    assert 100 * sum(right) / 12 == pytest.approx(float(said[3]), abs=0.01)
