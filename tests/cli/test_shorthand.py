"""Short options are written out; what the data leaves open is what the weights or the model want."""

import shlex
from pathlib import Path

import pytest
import timm
import torch
from jsonargparse import Namespace
from PIL import Image

from mobilemamba.cli import plan
from mobilemamba.cli.shorthand import expand_options, load_settings
from mobilemamba.cli.weights import check_against_card, fill_preprocessing
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, save_weights

WANTED = Preprocessing((40, 40), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear", 0.9)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a network that is not the default one."""
    model = timm.create_model("mobilemamba_t2", num_classes=3, depths=(1, 1, 1), distilled=True)
    card = ModelCard("mobilemamba_t2", WANTED, 3, arch={"depths": [1, 1, 1]}, distilled=True)
    save_weights(model, tmp_path / "own.safetensors", card)
    return tmp_path / "own.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / "1.png")
    return tmp_path / "pets"


def test_other_options_stay() -> None:
    options = ["--config", "x.yaml", "--trainer.max_epochs", "3", "--model.lr=2", "--data", "FashionMNISTSample"]
    assert expand_options(options) == options


def test_switches_need_no_value() -> None:
    assert expand_options(["--tta", "--window", "64", "--worst_first"]) == shlex.split(
        "--tta true --window 64 --worst_first true"
    )
    assert expand_options(["--tta", "false"]) == ["--tta", "false"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50.a1_in1k"])
def test_a_model_by_its_name(name: str) -> None:
    assert expand_options(["--model", name]) == ["--model.name", name]
    assert expand_options([f"--model={name}"]) == ["--model.name", name]


@pytest.mark.parametrize("value", ["ClassificationTask", "own.tasks.Task", "model.yaml", "{name: resnet18}"])
def test_a_model_by_its_class_or_file(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").touch()
    assert expand_options(["--model", value]) == ["--model", value]


def test_a_model_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"'mobilemamba_s7': .*did you mean mobilemamba_s6"):
        expand_options(["--model", "mobilemamba_s7"])


def test_data_by_its_folder(pictures: Path, tmp_path: Path) -> None:
    assert expand_options(["--data", str(pictures)]) == ["--data", "ImageFolder", "--data.root", str(pictures)]
    (tmp_path / "imagenet/val/n01440764").mkdir(parents=True)
    (tmp_path / "imagenet/val/n01440764/1.JPEG").touch()
    imagenet = str(tmp_path / "imagenet")
    assert expand_options(["--data", imagenet]) == ["--data", "ImageNet", "--data.root", imagenet]


@pytest.mark.parametrize("folder", ["no/where", "No/where", "nowhere"])
def test_a_folder_that_is_not_there(folder: str) -> None:
    with pytest.raises(ConfigError, match=rf"--data {folder}: no such folder in {Path.cwd()}; .*or ImageNet"):
        expand_options(["--data", folder])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("set.zip", "an archive, which has to be unpacked"),
        ("cat.jpg", "a file"),
        ("Set", "a file"),
        ("x" * 400 + "/y", "no such folder"),
    ],
)
def test_what_is_no_folder(tmp_path: Path, name: str, reason: str) -> None:
    if len(name) < 100:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"{name}: {reason}; give a folder of pictures"):
        expand_options(["--data", str(tmp_path / name)])


def network(*options: str) -> tuple[object, ...]:
    """Name, channels, chosen architecture and second classifier of the network that options come to."""
    (row,) = plan([*options])
    found = row.config["model"]["init_args"]
    arch = {name: value for name, value in found["arch"].items() if value is not None}
    return found["name"], found["in_chans"], arch, found["distillation_head"]


OWN = ("mobilemamba_t2", 3, {"depths": [1, 1, 1]}, True)


def test_weights_say_what_they_are_of(weights: Path, tmp_path: Path) -> None:
    short, long, file = tmp_path / "lr.yaml", tmp_path / "class.yaml", tmp_path / "weights.yaml"
    short.write_text("model: {lr: 0.1}")
    long.write_text("model: {class_path: ClassificationTask, init_args: {new_head: true}}")
    file.write_text(f"model: {{weights: {weights}}}")
    for given in (["--weights", str(weights)], [f"--model.weights={weights}"], ["--config", str(file)]):
        assert network(*given) == OWN
        assert network("--config", str(short), *given) == OWN
        assert network(*given, "--config", str(long)) == OWN
    assert network("--weights", str(weights), "--model.arch.d_state", "4")[2] == {"depths": [1, 1, 1], "d_state": 4}


@pytest.mark.parametrize("option", ["--model", "--model.name"])
def test_a_network_that_is_named_otherwise_stays(weights: Path, option: str) -> None:
    for order in (1, -1):
        options = [[option, "mobilemamba_s6"], ["--weights", str(weights)]][::order]
        assert network(*options[0], *options[1]) == ("mobilemamba_s6", 3, {}, False)


def test_what_contradicts_the_weights_is_refused(weights: Path) -> None:
    def given(name: str = "mobilemamba_t2", in_chans: int = 3, partial: bool = False, **arch: object) -> Namespace:
        model = {"name": name, "in_chans": in_chans, "partial_weights": partial, "weights": str(weights)}
        return config({**model, "arch": Namespace(**arch)})

    check_against_card(given())
    check_against_card(given(depths=(1, 1, 1), d_state=4))
    check_against_card(given("mobilemamba_s6", partial=True))
    with pytest.raises(ConfigError, match=r"model.name=mobilemamba_s6: .* are weights of a mobilemamba_t2 with"):
        check_against_card(given("mobilemamba_s6"))
    with pytest.raises(ConfigError, match=r"model.in_chans=1: .* with in_chans=3; leave model.in_chans out"):
        check_against_card(given(in_chans=1))
    with pytest.raises(ConfigError, match=r"model.arch.depths=\(1, 2, 1\): .* with arch.depths=\[1, 1, 1\]; leave"):
        check_against_card(given(depths=(1, 2, 1)))


def test_weights_that_are_not_there() -> None:
    with pytest.raises(WeightsError, match=r"no weights at absent.pth"):
        expand_options(["--weights", "absent.pth"])


def config(model: dict, **data: object) -> Namespace:
    settings = {"img_size": 1, "mean": 1, "std": 1, "interpolation": 1, "crop_pct": 1} | data
    return Namespace(
        model=Namespace(class_path="mobilemamba.tasks.ClassificationTask", init_args=Namespace(**model)),
        data=Namespace(class_path="y", init_args=Namespace(**settings)),
    )


def test_open_settings_are_the_models() -> None:
    found = config({"name": "mobilemamba_b1", "weights": None}, img_size=None, mean=None, crop_pct=0.5)
    fill_preprocessing(found)
    data = found.data.init_args
    assert (data.img_size, data.crop_pct, data.std) == (256, 0.5, 1)
    assert data.mean == pytest.approx((0.485, 0.456, 0.406))


def test_the_weights_come_before_the_model(weights: Path) -> None:
    found = config({"name": "mobilemamba_b1", "weights": str(weights)}, img_size=None, std=None, interpolation=None)
    fill_preprocessing(found)
    data = found.data.init_args
    assert (data.img_size, data.std, data.interpolation) == (40, (0.2, 0.2, 0.2), "bilinear")


@pytest.mark.parametrize("given", [True, False, None])
def test_pictures_are_turned_as_the_weights_want(tmp_path: Path, given: bool | None) -> None:
    card = ModelCard("resnet18", Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, upright=given), 2)
    save_weights(torch.nn.Linear(1, 1), tmp_path / "x.safetensors", card)
    for own, expected in ((None, given), (True, True), (False, False)):
        found = config({"name": "resnet18", "weights": str(tmp_path / "x.safetensors")}, upright=own)
        fill_preprocessing(found)
        assert found.data.init_args.upright is expected


def test_weights_without_a_card_leave_it_to_the_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "plain.pth")
    found = config({"name": "tf_efficientnet_lite0", "weights": str(tmp_path / "plain.pth")}, mean=None)
    fill_preprocessing(found)
    assert found.data.init_args.mean == (0.5, 0.5, 0.5)


def test_data_without_such_settings_is_left_alone() -> None:
    found = config({"name": "mobilemamba_b1"}, img_size=None)
    del found.data.init_args["crop_pct"]
    fill_preprocessing(found)
    assert found.data.init_args.img_size is None


@pytest.mark.parametrize("folder", ["no/a: b", "- a", "a: b"])  # a mapping or a list to YAML
def test_a_path_is_no_settings(tmp_path: Path, folder: str) -> None:
    if "/" not in folder:
        (tmp_path / folder).mkdir()
    (row,) = plan(["--data", "ImageFolder", "--data.root", folder])
    assert row.config["data"]["init_args"]["root"] == folder


@pytest.mark.parametrize("file", ["part.yaml", "part.yml", "part.json"])
def test_the_name_of_a_section_s_file_is_no_short_form(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).touch()
    for section in ("data", "model"):
        assert load_settings(f"{section}: {file}") == {section: file}


@pytest.mark.parametrize(("text", "value"), [("[a/b, c]", ["a/b", "c"]), ("{a: b/c}", {"a": "b/c"})])
def test_a_list_of_paths_is_a_list(text: str, value: object) -> None:
    assert load_settings(text) == value


def test_files_take_a_model_by_its_name_and_data_by_their_folder(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(f"model: mobilemamba_t2\ndata: {pictures}")
    (row,) = plan(["--config", str(file), "--model.lr", "0.5"])
    assert row.config["model"]["init_args"]["name"] == "mobilemamba_t2"
    assert row.config["model"]["init_args"]["lr"] == 0.5
    assert row.config["data"]["class_path"].endswith(".ImageFolder")
    assert row.config["data"]["init_args"]["root"] == str(pictures)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/short.yaml").write_text("data: pets")  # not beside the file, but where data.root is looked for
    assert plan(["--config", "deep/short.yaml"])[0].config["data"]["init_args"]["root"] == "pets"
    file.write_text("model: part.yaml\ndata: part.yaml")
    (tmp_path / "part.yaml").write_text("{}")
    assert plan(["--config", str(file)])[0].config["data"]["class_path"].endswith(".FashionMNISTSample")
    for text, message in (
        ("model: mobilemamba_t22", r"short.yaml: model name 'mobilemamba_t22': expected one of"),
        ("data: /nope", r"short.yaml: --data /nope: no such folder; give a folder"),
        ("weights: x.safetensors", r"short.yaml: unknown setting weights; did you mean model.weights"),
        ("sweep: {row: {a: {model.lr: 1}}}", r"short.yaml: unknown setting sweep.row; did you mean sweep.rows\?"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            plan(["--config", str(file)])
