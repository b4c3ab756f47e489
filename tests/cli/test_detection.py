"""Detection at the command line: recipes, own folders, what is printed and refused."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobilemamba.cli import plan
from mobilemamba.cli.shorthand import expand_options
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, save_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba_command import main

ARCH = {"embed_dims": [16, 16, 16], "depths": [1, 1, 1]}
LOOK = Preprocessing((32, 32), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), "bilinear")
STEP = shlex.split(
    "--trainer.accelerator cpu --trainer.logger false --trainer.max_epochs 1 --trainer.limit_train_batches 1 "
    "--trainer.limit_val_batches 1 --data.num_workers 0 --data.batch_size 2 --model.head_dim 8 --table_size null"
)

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def folder() -> Path:
    """Pictures with one red box each, in COCO's format."""
    root = Path("own")
    box = {"category_id": 3, "bbox": [10, 10, 40, 30], "segmentation": [[10, 10, 50, 10, 50, 40, 10, 40]]}
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        picture = Image.new("RGB", (96, 64))
        picture.paste("red", (10, 10, 50, 40))
        for number in range(2):
            picture.save(root / part / f"{number}.png")
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 64} for n in range(2)],
            "annotations": [{"id": n + 1, "image_id": n, "area": 1200, "iscrowd": 0, **box} for n in range(2)],
            "categories": [{"id": 3, "name": "roof"}, {"id": 7, "name": "door"}],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def classifier() -> str:
    model = create_model("mobilemamba_t2", ArchOverrides(**ARCH), 5)
    save_weights(model, "classifier.safetensors", ModelCard("mobilemamba_t2", LOOK, 5, arch=ARCH))
    return "classifier.safetensors"


@pytest.mark.parametrize("recipe", ["mask_rcnn", "retinanet", "ssdlite_320"])
def test_recipes_train_on_the_sample_and_take_other_data(recipe: str, root: Path, classifier: str) -> None:
    given = ["--config", str(root / f"experiments/detection/{recipe}.yaml")]
    (row,) = plan([*given, "--data", "COCO", "--data.root", "x", "--weights", classifier])
    assert row.config["data"]["class_path"].endswith("COCO")
    assert row.config["data"]["init_args"]["masks"] == (recipe == "mask_rcnn")
    if recipe != "ssdlite_320":
        assert row.config["data"]["init_args"]["img_size"] is None, "the sample's size is not that of other data"
    assert row.config["model"]["init_args"]["arch"]["depths"] == [1, 1, 1]
    cli = main(["fit", *given, *STEP, "--data.img_size", "64", "--weights", classifier])
    assert type(cli.datamodule).__name__ == "FashionObjects"
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    assert cli.model.scores[0].label == ("mask AP" if recipe == "mask_rcnn" else "AP")


def test_a_training_on_own_pictures(folder: Path, root: Path, classifier: str) -> None:
    recipe = ["--config", str(root / "experiments/detection/finetune.yaml"), "--data", str(folder)]
    cli = main(["fit", *recipe, "--weights", classifier, "--data.img_size", "64", *STEP])
    assert cli.model.hparams["head"] == "retinanet"
    assert len({group["lr"] for group in cli.trainer.optimizers[0].param_groups}) > 3, "by depth"
    assert "score" in json.loads(Path("runs/finetune/results.json").read_text())
    found = main(
        ["validate", "--weights", "runs/finetune/best.safetensors", "--data", "COCOFolder", "--data.root", "own"]
    )
    assert found.datamodule.class_names == ("roof", "door")


def test_an_evaluation_scales_as_the_weights_say(folder: Path) -> None:
    """A detector that knows pictures of one shape is not shown others, unless asked for; as predict shows them."""
    options = f"--weights d.safetensors --data {folder} --data.num_workers 0 --trainer.logger false".split()
    for how in (
        replace(LOOK, img_size=(64, 64), resize="stretch", antialias=False),
        replace(LOOK, img_size=(64, 90), resize="fit"),
    ):
        card = ModelCard("test_resnet", how, 2, class_names=("roof", "door"), task="detection", head="ssdlite")
        save_weights(build_network(card), "d.safetensors", card)
        data = main(["validate", *options]).datamodule
        shown = {name: tuple(value) if name == "img_size" else value for name, value in data.preprocessing.items()}
        assert {**asdict(how), **shown} == {**asdict(how), "upright": True}
    assert main(["validate", *options, "--data.resize", "stretch"]).datamodule.resize == "stretch"


def test_folders_of_boxes_are_known(folder: Path) -> None:
    assert expand_options(["--data", "own"]) == ["--data", "COCOFolder", "--data.root", "own"]
    content = (folder / "train.json").read_text()
    for name in (
        "coco/train2017",
        "coco/annotations",
        "yolo/images/train",
        "yolo/labels/train",
        "classes/train/images",
    ):
        Path(name).mkdir(parents=True)
    Path("coco/annotations/instances_train2017.json").write_text(content)
    assert expand_options(["--data", "coco"])[1] == "COCO"
    Path("yolo/data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
    assert expand_options(["--data", "yolo"])[1] == "YOLOFolder"
    Path("classes/train.json").write_text('{"epochs": 3}')
    assert expand_options(["--data", "classes"])[1] == "ImageFolder", "another JSON"
    Path("yolo/data.yaml").write_text("names: 3\n")
    assert expand_options(["--data", "yolo"])[1] == "ImageFolder"
