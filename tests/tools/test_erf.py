"""``erf``: a figure, a table and files of what networks see, and plain lines for what cannot be."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mobilemamba.analysis import receptive_fields
from mobilemamba.analysis.erf import share_beyond
from mobilemamba.errors import ConfigError, DataError, MobileMambaError
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba_command import main

MODEL = "test_efficientnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures in folders of classes, one of them broken, and trained weights that say what they are of."""
    folder = tmp_path_factory.mktemp("erf")
    generator = np.random.default_rng(0)
    for number in range(5):
        path = folder / "pictures" / "val" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (folder / "pictures" / "val" / "class_1" / "broken.png").write_bytes(b"broken")
    for name in ("1.png", "2.jpg"):
        (folder / "bad").mkdir(exist_ok=True)
        (folder / "bad" / name).write_bytes(b"broken")
    (folder / "pictures" / "train").mkdir()
    Image.new("RGB", (50, 50)).save(folder / "pictures" / "train" / "other.png")
    torch.manual_seed(5)
    card = ModelCard(MODEL, Preprocessing((64, 48), (0.5,) * 3, (0.25,) * 3), num_classes=3)
    network = timm.create_model(MODEL, num_classes=3)
    save_weights(network, folder / "last.safetensors", card)
    torch.save(network.state_dict(), folder / "plain.pth")
    return folder


def read(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "erf.csv").read_text().splitlines()))


def test_models_times_stages(printed, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "erf"
    weights = str(folder / "last.safetensors")
    text = printed(
        *("erf", MODEL, "test_resnet", "--weights", weights, "-", "--data", str(folder / "pictures")),
        *("--size", "65", "--output", str(output), "--batch_size", "2"),
    )
    assert "5 pictures of pictures, rule relu" in text
    assert "untrained networks have random weights" in text
    lines = read(output)
    assert [line["tap"] for line in lines] == [f"blocks.{i}" for i in range(1, 5)] + [f"layer{i}" for i in range(1, 5)]
    assert {line["weights"] for line in lines[:4]} == {weights}
    assert {line["weights"] for line in lines[4:]} == {"untrained"}
    assert {(line["pictures"], line["height"]) for line in lines} == {("5", "65")}
    assert "log_r50" not in lines[0]
    # The same by hand: scaled to a square, prepared as the card says.
    paths = [path for path in sorted((folder / "pictures" / "val").glob("*/*")) if path.stem != "broken"]
    resized = [np.asarray(Image.open(path).resize((65, 65), Image.Resampling.BICUBIC)) for path in paths]
    x = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.manual_seed(5)
    expected = receptive_fields(timm.create_model(MODEL, num_classes=3), x)
    maps = np.load(output / "erf.npz")
    for field, line in zip(expected, lines, strict=False):
        np.testing.assert_allclose(maps[line["map"]], field.map, rtol=1e-4, atol=1e-6 * field.map.max())
        assert float(line["centre_row"]) == field.centre[0]
        assert float(line["r50"]) == pytest.approx(field.ratios[2], rel=1e-4)
        assert float(line["r50_median"]) == pytest.approx(field.quartiles[1, 2], rel=1e-4)
        assert float(line["area99"]) == pytest.approx(field.areas[3], rel=1e-2)
    with Image.open(output / "erf.png") as picture:
        assert picture.width > 900
    assert (output / "erf.pdf").read_bytes().startswith(b"%PDF")


def test_before_and_after_training(printed, folder: Path, tmp_path: Path) -> None:
    """By the weights' own card, at its size, on the sample; the untrained network is the seed's."""
    options = [
        "--weights",
        str(folder / "last.safetensors"),
        "--compare",
        "untrained",
        "--pictures",
        "2",
        "--seed",
        "3",
    ]
    options += ["--blocks", "--position", "0.0", "0.99", "--rule", "absolute", "--as_in_replknet"]
    printed("erf", *options, "--output", str(tmp_path / "a"), "--scale", "common", "--display", "power")
    printed("erf", *options, "--output", str(tmp_path / "b"), "--display", "raw")
    lines = read(tmp_path / "a")
    half = len(lines) // 2
    assert [line["weights"] == "untrained" for line in lines] == [True] * half + [False] * half
    assert lines[0]["tap"] == "blocks.1.0"
    assert {(line["height"], line["width"], line["cell_row"]) for line in lines} == {("64", "48", "0")}
    assert lines[0]["data"] == "the Fashion-MNIST sample"
    assert all(0 < float(line["log_r50"]) <= 1 for line in lines)
    assert lines == read(tmp_path / "b")
    a, b = (np.load(tmp_path / name / "erf.npz") for name in "ab")
    assert all((a[key] == b[key]).all() for key in a)
    assert not np.allclose(a[lines[0]["map"]], a[lines[half]["map"]])
    for line in lines:
        centre = float(line["centre_row"]), float(line["centre_column"])
        for name, beyond in zip(("1/8", "1/4", "1/2"), share_beyond(a[line["map"]], centre, (6, 12, 24)), strict=True):
            assert float(line[f"beyond_{name}"]) == pytest.approx(beyond, rel=1e-4, abs=1e-5)


def test_a_batch_that_no_memory_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate everything")

    monkeypatch.setattr("mobilemamba.tools.erf.receptive_fields", fail)
    message = f"^{MODEL}: the batch is too large for the memory of cpu; lower --batch_size$"
    with pytest.raises(ConfigError, match=message):
        main(["erf", MODEL, "--pictures", "1", "--output", str(tmp_path)])


def test_the_table_fits_a_narrow_screen(printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed("erf", MODEL, "--pictures", "1", "--size", "64", "--output", str(tmp_path), "--rule", "signed")
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert all(word in text for word in (MODEL, "untrained", "blocks.4", "r99", "area50"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to look at: name models"),
        (["efficientnet_b99"], "expected one of: mobilemamba_t2"),
        (["{last}"], "last.safetensors is no model's name; give weights by --weights"),
        (["--weights", "{folder}/x.onnx"], "x.onnx is an exported network, without gradients"),
        ([MODEL, "--weights", "{last}", "-"], "2 weights for 1 models: give one for each, - for none"),
        ([MODEL, MODEL, "--weights", "-"], "1 weights for 2 models"),
        (["--weights", "-"], "none is named"),
        (["test_resnet", "--weights", "{last}"], "is of a test_efficientnet, and the model named is test_resnet"),
        (["--weights", "{folder}/absent.pth"], "absent.pth"),
        ([MODEL, "--compare", "untrained"], "there are no weights to compare with"),
        ([MODEL, "--pictures", "0"], "--pictures 0: expected 1 or more"),
        ([MODEL, "--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        ([MODEL, "--seed", "99999999999999999999"], "--seed 9{20}: expected 0 to"),
        ([MODEL, "--size", "0"], "--size 0: expected 1 to 2048"),
        ([MODEL, "--size", "99999"], "--size 99999: expected 1 to 2048"),
        (["--weights", "{folder}/plain.pth"], "plain.pth does not say which network it is of; give the model, e.g."),
        ([MODEL, "--position", "0.5"], "expected a row and a column"),
        ([MODEL, "--position", "0.5", "7", "--size", "32"], "column 7.0 is outside the picture"),
        ([MODEL, "--rule", "squared"], "squared"),
        (["test_convnext", "--size", "8"], "test_convnext: ConvNeXt takes no pictures of 8 x 8 px"),
        ([MODEL, "--data", "{folder}/nowhere"], "nowhere: no such folder"),
        ([MODEL, "--data", "{folder}/empty"], "no pictures in"),
        ([MODEL, "--data", "{last}"], "last.safetensors: a file; give a folder of pictures"),
        ([MODEL, "--data", "{folder}/bad"], "no picture of the 2 in .*bad can be read"),
        ([MODEL, "--output", "{last}"], "last.safetensors: File exists; choose another folder"),
    ],
)
def test_what_cannot_be(folder: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    options = [text.format(last=folder / "last.safetensors", folder=folder) for text in options]
    where = [] if "--output" in options else ["--output", str(tmp_path / "erf")]
    with pytest.raises(MobileMambaError, match=message) as found:
        main(["erf", *options, *where, *([] if "--pictures" in options else ["--pictures", "1"])])
    assert isinstance(found.value, ConfigError | DataError) or "absent" in message
    assert not (tmp_path / "erf" / "erf.csv").exists()
