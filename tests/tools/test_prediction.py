"""``predict``: the network's own classes, from files, folders and lists, with unreadable pictures reported."""

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from mobilemamba.errors import ConfigError, DataError, StoppedError, UnreadablePicturesError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, for_inference, load_network, save_weights
from mobilemamba.models.predictor import ClassificationPredictor, class_names
from mobilemamba.ops.backends import forget_choices
from mobilemamba.tools import prediction
from mobilemamba.tools.answers import print_table
from mobilemamba.tools.prediction import answer, find_pictures
from mobilemamba_command import main
from tests.ops.scans import needs_native

pytestmark = pytest.mark.kernels

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


def predictor_of(card: ModelCard, network: torch.nn.Module | None = None) -> ClassificationPredictor:
    return ClassificationPredictor(network or torch.nn.Identity(), card, torch.device("cpu"))


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
    for found in answers:
        probabilities = expected(folder, Path(found["picture"]).stem)
        ranked = probabilities.sort(descending=True)
        assert [entry["index"] for entry in found["classes"]] == ranked.indices.tolist()
        assert [entry["name"] for entry in found["classes"]] == [list(COLOURS)[i] for i in ranked.indices]
        assert [entry["probability"] for entry in found["classes"]] == pytest.approx(ranked.values.tolist(), abs=1e-4)


def test_pictures_of_several_sizes_are_answered_in_order(folder: Path) -> None:
    class Sized(ClassificationPredictor):
        def prepare(self, picture):
            side = 8 if picture.getpixel((0, 0)) == COLOURS["red"] else 4
            return super().prepare(picture)[:, :side, :side]

        def rows(self, outputs, sizes):
            return [{"shape": tuple(one.shape)} for one in outputs]

    predictor = Sized(torch.nn.Identity(), load_network(folder / "colours.safetensors")[1], torch.device("cpu"))
    paths = [folder / "pictures" / name for name in ("deep/blue.png", "green.png", "red.png", "deep/blue.png")]
    assert [found["shape"][1] for found in answer(paths, predictor, 4)] == [4, 4, 8, 4]


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


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("red.png\n\ndeep\n", ["red.png", "blue.png"]),
        ("red.png\r\ngreen.png", ["red.png", "green.png"]),
        ("deep\0green.png\0", ["blue.png", "green.png"]),  # find -print0
        ("", []),
    ],
)
def test_a_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch, listed: str, found: list[str]) -> None:
    monkeypatch.chdir(folder / "pictures")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    assert [path.name for path in find_pictures(["-"])] == found


ODD = [b"caf\xe9.png", b"two\nlines.png", b"[bold]red[x].png", b":smile:.png", b"a,b\"c'.png", b"\x1b[31m.png"]
ODD_CLASSES = ("a, b", 'the "quoted" one', "two\nlines [red]:smile:")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a network with classes, whose names are no markup and fit into no one line of a table."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "pictures").mkdir()
    for name in ODD:
        Image.new("RGB", (8, 8)).save(folder / "pictures" / os.fsdecode(name))
    card = ModelCard("test_efficientnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 3, class_names=ODD_CLASSES)
    save_weights(timm.create_model("test_efficientnet", num_classes=3), folder / "odd.safetensors", card)
    return folder


def test_any_name_comes_through_to_a_file(printed, odd: Path, tmp_path: Path) -> None:
    for ending in ("csv", "json"):
        printed("predict", f"{odd}/pictures", f"--weights={odd}/odd.safetensors", f"--output={tmp_path}/x.{ending}")
    answers = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert {os.fsencode(Path(answer["picture"]).name) for answer in answers} == set(ODD)
    assert {entry["name"] for entry in answers[0]["classes"]} == set(ODD_CLASSES)
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [os.fsdecode(name) for name in ODD]
    assert {Path(row["picture"]).name for row in rows} == {r"caf\xe9.png", *names[1:]}
    assert {row["class"] for row in rows} == set(ODD_CLASSES)


@pytest.mark.parametrize(("encoding", "accent"), [("utf-8", "é"), ("ascii", "\\xe9"), ("latin-1", "é")])
def test_any_name_is_printed_as_it_is(
    odd: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, accent: str
) -> None:
    card = ModelCard("test_efficientnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 1)
    names = [*map(os.fsdecode, ODD), "é二.png"]
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding))
    classes = [{"index": 0, "name": "[b]", "probability": 1.0}]
    print_table([{"picture": name, "classes": classes} for name in names], predictor_of(card))
    text = out.getvalue().decode(encoding)
    shown = [
        r"caf\xe9.png",
        r"two\nlines.png",
        "[bold]red[x].png",
        ":smile:.png",
        "a,b\"c'.png",
        r"\x1b[31m.png",
        accent,
    ]
    assert [name in text for name in shown] == [True] * len(shown)
    assert text.count("[b]") == len(names)


def test_a_reader_that_has_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:  # noqa: PTH123 -- a descriptor
        monkeypatch.setattr("sys.stdout", out)
        card = ModelCard("test_efficientnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 1)
        print_table([{"picture": "x", "error": "y"}], predictor_of(card))


def test_what_was_done_is_kept_when_the_user_stops(
    folder: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object) -> Iterator[dict]:
        yield from itertools.islice(answer(*args), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "answer", stopped)
    options = [f"{folder}/pictures", "--weights", weights]
    for output in ([], ["--output", f"{tmp_path}/x.json"]):
        with pytest.raises(StoppedError, match="stopped after 2 of 3 pictures") as caught:
            main(["predict", *options, *output])
        assert caught.value.exit_code == 130
    assert len(json.loads((tmp_path / "x.json").read_text())) == 2
    assert "red.png" in capsys.readouterr().out


def test_pictures_are_turned_as_the_weights_say(folder: Path, tmp_path: Path) -> None:
    stored = Image.new("RGB", (32, 32))
    stored.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3
    stored.save(tmp_path / "x.png", exif=exif)
    seen = []
    for upright in (None, True, False):
        card = ModelCard("x", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0, upright=upright), 2)
        watch = torch.nn.Module()
        watch.forward = lambda x: (seen.append(x), torch.zeros(len(x), 2))[1]
        list(answer([tmp_path / "x.png"], predictor_of(card, watch), 1))
    assert [bool(x[0, 0, 0, 0] > x[0, 0, -1, 0]) for x in seen] == [False, False, True]


def test_files_that_are_left_out_are_said(printed, folder: Path, weights: str, tmp_path: Path, capsys) -> None:
    for name, source in (("1.jfif", "red"), ("2.jpg", "green")):
        Image.open(folder / f"pictures/{source}.png").save(tmp_path / name, "JPEG")
    (tmp_path / "3.heic").touch()
    out = printed("predict", str(tmp_path), "--weights", weights)
    assert "1.jfif" in out
    main(["predict", str(tmp_path), "--weights", weights])
    assert "left out, as no pictures by their names: 1 file (1 .heic)\n" in capsys.readouterr().err


@needs_native
def test_a_mobilemamba_is_laid_out_for_inference_where_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("mobilemamba_t2", num_classes=3, depths=(1, 1, 1)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        for reason, how in (
            (None, "optimized for inference"),
            ("no compiler", "norms folded, not optimized for inference: no compiler"),
        ):
            monkeypatch.setattr("mobilemamba.ops.native.library.why_not", lambda reason=reason: reason)
            forget_choices()
            network, said = for_inference(model, torch.device("cpu"))
            assert said == how
            torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-3)
    other = timm.create_model("test_efficientnet", num_classes=3)
    network, said = for_inference(other, torch.device("cpu"), torch.bfloat16)
    assert said == "norms folded"
    assert {x.dtype for x in network.parameters()} == {torch.bfloat16}


def test_unreadable_pictures_are_reported_and_skipped(
    folder: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["--weights", "W", "--output", "pictures.csv"], ConfigError, "--output pictures.csv: Is a directory; choose"),
        (["--weights", "W", "--output", "x" * 400 + ".csv"], ConfigError, "x.csv: File name too long; choose another"),
        (["--weights", "W", "--score", "2"], ConfigError, "--score 2: expected 0 to 1"),
        (["--weights", "W", "--score", "0.5"], ConfigError, "--score is for detection, not classification"),
        (["--weights", "W", "--device", "quantum"], ConfigError, "device quantum"),
        (["--weights", "W", "--device", "meta"], ConfigError, "device meta: .*; use auto or cpu"),
        (["--weights", "W", "--batch_size", "0"], ConfigError, "--batch_size 0: expected 1 or more"),
        (["--weights", "W", "--model", "mobilemamba_t2"], ConfigError, "mobilemamba_t2"),
        (["nowhere.jpg", "--weights", "W"], DataError, "no such picture or folder: nowhere.jpg"),
        (["x" * 400, "--weights", "W"], DataError, "no such picture or folder: xxx"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    weights: str,
    options: list[str],
    error: type,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures.csv").mkdir()
    options = [weights if option == "W" else option for option in options]
    with pytest.raises(error, match=message) as caught:
        main(["predict", str(folder / "pictures/red.png"), *options])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("page.pth", "", "cannot read page.pth: it is no file of torch's, or a damaged one; expected"),
        ("empty.pth", "", "cannot read empty.pth: it is empty; expected"),
        ("numbers.pth", "", "numbers.pth holds no tensors; expected"),
        ("pipe.pth", "", "pipe.pth is a pipe; give a .safetensors"),
        ("plain.pth", "", "plain.pth does not say which network it is of; give --model, e.g."),
        ("plain.pth", "--model test_resnet", "plain.pth .*; it is of another model than test_resnet: give that as"),
        ("lie.safetensors", "", "lie.safetensors does not fit: .*; the file's description of its network does not"),
    ],
)
def test_weights_of_no_use_are_named_with_what_predict_can_do(
    folder: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    network, card = load_network(weights, verbose=False)
    Path("page.pth").write_text("<html>not found</html>")
    Path("empty.pth").touch()
    torch.save({"epoch": 3}, "numbers.pth")
    os.mkfifo("pipe.pth")
    torch.save(network.state_dict(), "plain.pth")
    save_weights(network, "lie.safetensors", replace(card, num_classes=4, class_names=()))
    for command in (
        ["predict", str(folder / "pictures/red.png"), "--weights", name],
        ["convert", name, "x.safetensors"],
    ):
        with pytest.raises((ConfigError, WeightsError), match=f"^{message}") as caught:
            main([*command, *options.split()])
        assert not re.search(r"new_head|partial|\n", str(caught.value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "the network has no classifier; give weights of one with its classes"),
        ({"in_chans": 1}, "the network takes 1 channels; pictures are given to it in RGB"),
    ],
)
def test_networks_that_cannot_answer_pictures_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    options = {"num_classes": 3, "in_chans": 3, **options}
    card = ModelCard("test_resnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), **options)
    save_weights(timm.create_model("test_resnet", **options), tmp_path / "w.safetensors", card)
    with pytest.raises(ConfigError, match=f"w.safetensors: {message}$"):
        main(["predict", str(folder / "pictures"), "--weights", str(tmp_path / "w.safetensors")])


def test_answers_are_drawn(printed, folder: Path, weights: str, tmp_path: Path, capsys) -> None:
    printed("predict", str(folder / "pictures"), "--weights", weights, "--draw", str(tmp_path / "drawn"))
    drawn = [Image.open(path) for path in sorted((tmp_path / "drawn").iterdir())]
    assert [picture.getpixel((0, 0)) for picture in drawn] == [COLOURS[name] for name in ("green", "red", "blue")]
    with pytest.raises(ConfigError, match=r"--draw .*: File exists; choose another folder"):
        main(["predict", str(folder / "pictures"), "--weights", weights, "--draw", weights])
    assert all(picture.height > 50 + 3 * 12 for picture in drawn), "three lines of classes below"
    Image.open(folder / "pictures/red.png").save(tmp_path / "0001.png")  # a name that drawings have, elsewhere
    main(["predict", str(tmp_path), "--weights", weights, "--draw", str(tmp_path / "drawn")])
    assert capsys.readouterr().err.startswith("left out: 3 drawings of an earlier run\n")
    with pytest.raises(ConfigError, match=r"^--output .*: 0001.png in it was not drawn by predict"):
        main(["predict", str(folder / "pictures"), "--weights", weights, "--output", str(tmp_path)])
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["0001.png"], "those of an earlier run are gone"


def test_a_batch_that_no_memory_holds_is_named(
    printed, folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(ClassificationPredictor, "forward", fail)
    for options, number in (((), 32), (("--batch_size", "2"), 2)):
        with pytest.raises(ConfigError, match=rf"^--batch_size {number}: too many for the memory of cpu; give fewer$"):
            printed("predict", str(folder / "pictures"), "--weights", weights, *options)


def test_no_pictures_at_all(weights: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in "):
        main(["predict", str(tmp_path), "--weights", weights])


def test_names_of_classes() -> None:
    imagenet = class_names(ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2")))
    assert len(imagenet) == 1000
    assert imagenet[0].startswith("tench")
    few = ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), num_classes=2)
    assert class_names(few) == ("class 0", "class 1")


@pytest.mark.parametrize("options", [["--tta"], ["--window", "64"]])
def test_a_classifier_sees_pictures_whole(printed, folder: Path, weights: str, options: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{options[0]} is for segmentation, not classification"):
        printed("predict", str(folder), "--weights", weights, *options)
