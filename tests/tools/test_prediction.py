"""``predict``: the network's own classes, from files, folders and lists, with unreadable pictures reported."""

import csv
import io
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from mobilemamba.errors import ConfigError, DataError, UnreadablePicturesError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, load_network, save_weights
from mobilemamba.tools.prediction import class_names, find_pictures

COLOURS = {"red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three plain pictures, and a network that names their colour: it picks the strongest channel."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "pictures" / "deep").mkdir(parents=True)
    for place, (name, colour) in zip(("", "", "deep"), COLOURS.items(), strict=True):
        Image.new("RGB", (60, 50), colour).save(folder / "pictures" / place / f"{name}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3)
    card = ModelCard(
        "test_efficientnet",
        Preprocessing((32, 48), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0),
        num_classes=3,
        class_names=tuple(COLOURS),
    )
    save_weights(model, folder / "colours.safetensors", card)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> str:
    return str(folder / "colours.safetensors")


def expected(folder: Path, name: str) -> torch.Tensor:
    """Probabilities by the definition: scaled, normalised, asked."""
    model, _ = load_network(folder / "colours.safetensors")
    colour = torch.tensor(COLOURS[name]) / 255
    x = ((colour - 0.5) / 0.5)[None, :, None, None].expand(1, 3, 32, 48)
    with torch.no_grad():
        return model(x).softmax(1)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_says_the_networks_own_probabilities(printed, folder: Path, tmp_path: Path, batch_size: int) -> None:
    output = tmp_path / "out.json"
    weights = str(folder / "colours.safetensors")
    printed(
        "predict",
        str(folder / "pictures"),
        "--weights",
        weights,
        "--output",
        str(output),
        "--batch_size",
        str(batch_size),
    )
    answers = json.loads(output.read_text())
    assert [Path(answer["picture"]).stem for answer in answers] == [
        "green",
        "red",
        "blue",
    ]  # by path, a folder's own first
    for answer in answers:
        probabilities = expected(folder, Path(answer["picture"]).stem)
        ranked = probabilities.sort(descending=True)
        assert [entry["index"] for entry in answer["classes"]] == ranked.indices.tolist()
        assert [entry["name"] for entry in answer["classes"]] == [list(COLOURS)[i] for i in ranked.indices]
        assert [entry["probability"] for entry in answer["classes"]] == pytest.approx(ranked.values.tolist(), abs=1e-4)


def test_the_table_names_pictures_and_classes(printed, folder: Path) -> None:
    out = printed(
        "predict", str(folder / "pictures/red.png"), "--weights", str(folder / "colours.safetensors"), "--topk", "1"
    )
    best = list(COLOURS)[int(expected(folder, "red").argmax())]
    assert "red.png" in out
    assert best in out
    assert "32x48 px" in out
    assert sum(name in out.replace("red.png", "") for name in COLOURS) == 1


def test_csv_has_a_line_for_each_rank(printed, folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    printed("predict", str(folder / "pictures"), "--weights", weights, "--output", str(output), "--topk", "2")
    rows = list(csv.DictReader(output.open()))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert {row["class"] for row in rows} <= set(COLOURS)


def test_a_list_on_standard_input(printed, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/pictures/red.png\n\n{folder}/pictures/deep\n"))
    assert [path.name for path in find_pictures(["-"])] == ["red.png", "blue.png"]


def test_unreadable_pictures_are_reported_and_skipped(
    folder: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mobilemamba.cli import main

    bad = tmp_path / "notes.jpg"
    bad.write_text("no picture")
    output = tmp_path / "out.json"
    good = str(folder / "pictures/red.png")
    with pytest.raises(UnreadablePicturesError, match="1 of 3 pictures could not be read") as caught:
        main(
            ["predict", good, str(bad), good, "--weights", str(folder / "colours.safetensors"), "--output", str(output)]
        )
    assert caught.value.exit_code == 1
    answers = json.loads(output.read_text())
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert answers[0]["classes"] == answers[2]["classes"]
    assert "skipped: " in (err := capsys.readouterr().err)
    assert "notes.jpg" in err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], ConfigError, "--weights is missing"),
        (["--weights", "absent.pth"], WeightsError, "absent.pth"),
        (["--weights", "W", "--topk", "0"], ConfigError, "--topk 0: expected 1 or more"),
        (["--weights", "W", "--output", "x.txt"], ConfigError, "--output x.txt: .*ends in .csv or .json"),
        (["--weights", "W", "--output", "no/x.csv"], ConfigError, "--output no/x.csv: there is no folder no; make it"),
        (["--weights", "W", "--device", "quantum"], ConfigError, "--device quantum"),
        (["--weights", "W", "--model", "mobilemamba_t2"], ConfigError, "mobilemamba_t2"),
        (["nowhere.jpg", "--weights", "W"], DataError, "no such picture or folder: nowhere.jpg"),
    ],
)
def test_mistakes_are_one_line(folder: Path, weights: str, options: list[str], error: type, message: str) -> None:
    from mobilemamba.cli import main

    options = [weights if option == "W" else option for option in options]
    with pytest.raises(error, match=message) as caught:
        main(["predict", str(folder / "pictures/red.png"), *options])
    assert "\n" not in str(caught.value)


def test_no_pictures_at_all(weights: str, tmp_path: Path) -> None:
    from mobilemamba.cli import main

    with pytest.raises(DataError, match="no pictures in "):
        main(["predict", str(tmp_path), "--weights", weights])


def test_names_of_classes() -> None:
    imagenet = class_names(ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2")))
    assert len(imagenet) == 1000
    assert imagenet[0].startswith("tench")
    few = ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), num_classes=2)
    assert class_names(few) == ("class 0", "class 1")
