"""Segmentation at the command line: the task by its weights, folders of masks, what is printed, drawn and refused."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilemamba.cli import plan
from mobilemamba.cli.report import print_classes
from mobilemamba.cli.shorthand import expand_options
from mobilemamba.data import FashionScenes
from mobilemamba.dense import create_segmenter
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, save_weights
from mobilemamba_command import main

ARCH = {"embed_dims": [16, 16, 16], "depths": [1, 1, 1]}
LOOK = Preprocessing((32, 32), FashionScenes.mean, FashionScenes.std, "bilinear")
QUIET = "--trainer.accelerator cpu --trainer.logger false --data.num_workers 0"
SCENES = shlex.split(f"--data FashionScenes --data.img_size 32 --trainer.limit_val_batches 1 {QUIET}")

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


def save(path: str, names: tuple[str, ...] = FashionScenes.class_names, head: str = "semantic_fpn") -> str:
    segmenter = create_segmenter(head, "mobilemamba_t2", len(names), head_dim=8, arch=ArchOverrides(**ARCH))
    options = {"arch": ARCH, "task": "segmentation", "head": head, "head_options": {"head_dim": 8}}
    palette = FashionScenes.palette[: len(names)]
    card = ModelCard("mobilemamba_t2", LOOK, len(names), class_names=names, palette=palette, **options)
    save_weights(segmenter, path, card)
    return path


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder() -> Path:
    """Pictures with masks: red is 1, the rest 0; numbers for names."""
    root = Path("own")
    for number in range(5):
        picture, mask = Image.new("RGB", (40, 36)), Image.new("L", (40, 36))
        picture.paste("red", (0, 0, 20, 20 + number))
        mask.paste(1, (0, 0, 20, 20 + number))
        for part, image in (("images", picture), ("masks", mask)):
            (root / part).mkdir(parents=True, exist_ok=True)
            image.save(root / part / f"{number}.png")
    (root / "classes.txt").write_text("ground 10 10 10\nroof 200 0 0\n")
    return root


def test_the_weights_say_the_task_and_all_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    weights = save("best.safetensors", head="pspnet")
    options = ["--worst_first", "true", "--per_class", "classes.csv", "--window", "32"]
    cli = main(["validate", *SCENES, "--weights", weights, *options])
    printed = capsys.readouterr().out
    assert type(cli.model).__name__ == "SegmentationTask"
    Path("weights.yaml").write_text(f"model: {{weights: {weights}}}")
    (row,) = plan(["--config", "weights.yaml", *SCENES])
    assert row.config["model"]["class_path"].endswith("SegmentationTask")
    assert row.config["model"]["init_args"]["head"] == "pspnet"
    assert (cli.model.hparams["head"], cli.model.hparams["head_dim"]) == ("pspnet", 8)
    assert "mobilemamba_t2 with pspnet on Fashion scenes (2,000/200), 32x32 px, in windows of 32 px\n" in printed
    assert "mIoU (%)" in printed
    assert f"of {64 * 32 * 32:,} pixels" in printed
    rows = table("classes.csv")
    ious = [float(row["IoU (%)"]) for row in rows]
    assert ious == sorted(ious)
    assert sum(ious) / len(ious) == pytest.approx(float(cli.trainer.callback_metrics["val/miou"]), abs=0.01)
    assert sum(int(row["pixels"]) for row in rows) == 64 * 32 * 32


def test_classes_of_pixels_stand_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    counts = torch.tensor([[0, 0, 1000], [0, 1, 3000], [1, 1, 20], [1, 2, 1]])
    print_classes(counts, ["wall", "sky", "door"], None, "pixels", worst_first=False)
    printed = capsys.readouterr().out
    assert printed.index("wall") < printed.index("│ sky")
    assert printed.count("door") == 2, "for itself, although there is no pixel of it, and as a mistake"
    assert "4,000" in printed
    assert "3,000" in printed
    assert "25.00" in printed  # 1000 of 4000, which is also their accuracy
    assert "0.66" in printed  # 20 of 3021
    print_classes(counts, ["wall", "sky", "door"], None, "pixels", worst_first=True)
    printed = capsys.readouterr().out
    assert printed.index("│ sky") < printed.index("│ wall")


def test_a_training_on_own_pictures_and_what_it_leaves(
    folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = create_model("mobilemamba_t2", ArchOverrides(**ARCH), 5)
    save_weights(classifier, "classifier.safetensors", ModelCard("mobilemamba_t2", LOOK, 5, arch=ARCH))
    recipe = str(root / "experiments/segmentation/finetune.yaml")
    options = shlex.split(
        f"{QUIET} --trainer.max_epochs 1 --data.img_size 32 --data.batch_size 2 --model.head_dim 8 --table_size null"
    )
    cli = main(["fit", "--config", recipe, "--data", str(folder), "--weights", "classifier.safetensors", *options])
    assert type(cli.datamodule).__name__ == "SegmentationFolder"
    assert cli.model.hparams["name"] == "mobilemamba_t2"
    assert cli.datamodule.mean == LOOK.mean, "as the backbone was trained"
    run = Path("runs/finetune")
    results = json.loads((run / "results.json").read_text())
    assert results["classes"].keys() == {"ground", "roof"}
    weights = str(run / "best.safetensors")
    capsys.readouterr()
    evaluated = main(["validate", "--weights", weights, "--data", str(folder), *shlex.split(QUIET)])
    found = evaluated.trainer.callback_metrics
    assert float(found["val/miou"]) == pytest.approx(results["score"], abs=0.01)
    main(["predict", str(folder / "images"), "--weights", weights, "--output", "out/", "--device", "cpu"])
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *(name for number in range(1, 6) for name in (f"{number:04d}.png", f"{number:04d}_labels.png")),
        "answers.csv",
    ]
    labels = Image.open("out/0001_labels.png")
    assert labels.size == (40, 36)
    assert set(np.unique(np.asarray(labels))) <= {0, 1}
    assert labels.getpalette()[3:6] == [200, 0, 0]
    rows = table("out/answers.csv")
    assert sum(int(row["pixels"]) for row in rows) == 5 * 40 * 36
    main(["predict", str(folder / "images/0.png"), "--weights", weights, "--output", "one.json", "--device", "cpu"])
    (answer,) = json.loads(Path("one.json").read_text())
    assert answer.keys() == {"picture", "classes"}


def test_what_does_not_go_together_is_refused(folder: Path) -> None:
    weights = save("seg.safetensors")
    with pytest.raises(
        ConfigError, match=r"data=FashionScenes: its targets are masks, .*; choose another task, or data such"
    ):
        main(["fit", "--data", "FashionScenes", "--trainer.max_epochs", "1"])
    with pytest.raises(
        ConfigError, match=r"^seg.safetensors knows 11 classes, and SegmentationFolder has 2; give data"
    ):
        main(["validate", "--weights", weights, "--data", str(folder), *shlex.split(QUIET)])
    with pytest.raises(ConfigError, match="window=31: expected 32 px or more"):
        main(["validate", "--weights", weights, *SCENES, "--window", "31"])
    other = save("other.safetensors", ("ground", "roof"))
    (folder / "classes.txt").write_text("ground\nhouse\n")
    with pytest.raises(ConfigError, match="'house' where the weights know 'roof'; give data of the same classes"):
        main(["validate", "--weights", other, "--data", str(folder), *shlex.split(QUIET)])
    with pytest.raises(ConfigError, match=r"model.head=pspnet: .* with head=semantic_fpn"):
        main(["fit", "--weights", weights, *SCENES, "--model.head", "pspnet"])
    with pytest.raises(WeightsError, match="of a network for segmentation, and ClassificationTask is for"):
        main(["fit", "--model", "ClassificationTask", "--weights", weights, "--trainer.max_epochs", "1"])


def test_folders_of_masks_are_known(folder: Path) -> None:
    assert expand_options(["--data", "own"]) == ["--data", "SegmentationFolder", "--data.root", "own"]
    for name in ("parts/train/images", "parts/train/masks", "ade/images/training", "ade/annotations/training"):
        Path(name).mkdir(parents=True)
    assert expand_options(["--data", "parts"])[1] == "SegmentationFolder"
    assert expand_options(["--data", "ade"])[1] == "ADE20K"
    Path("coco/images").mkdir(parents=True)
    Path("coco/annotations").mkdir()
    assert expand_options(["--data", "coco"])[1] == "ImageFolder"


@pytest.mark.parametrize("recipe", ["sem_fpn", "deeplabv3", "pspnet"])
def test_recipes_take_a_step_and_other_data_and_a_backbone_s_weights(recipe: str, root: Path, folder: Path) -> None:
    model = create_model("mobilemamba_t2", ArchOverrides(**ARCH), 5)
    save_weights(model, "b4.safetensors", ModelCard("mobilemamba_t2", LOOK, 5, arch=ARCH))
    given = ["--config", str(root / f"experiments/segmentation/{recipe}.yaml")]
    (row,) = plan(given)
    assert row.config["data"]["class_path"].endswith("FashionScenes")
    (row,) = plan([*given, "--data", "ADE20K", "--data.root", "x", "--weights", "b4.safetensors"])
    assert row.config["data"]["class_path"].endswith("ADE20K")
    assert "scenes" not in row.config["data"]["init_args"]
    assert row.config["model"]["init_args"]["name"] == "mobilemamba_t2"
    assert row.config["model"]["init_args"]["arch"]["depths"] == [1, 1, 1]
    tiny = shlex.split("--model.name mobilemamba_t2 --model.head_dim 8 --data.scenes 4 --data.batch_size 2")
    tiny += shlex.split("--trainer.max_steps 1 --trainer.enable_checkpointing false --table_size null")
    cli = main(["fit", *given, *tiny, f"--model.arch={json.dumps(ARCH)}", *SCENES])
    assert cli.trainer.global_step == 1
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    if recipe == "sem_fpn":
        assert row.config["data"]["init_args"]["img_size"] is None, "the sample's size is not that of other data"


def test_a_sweep_counts_segmenters_as_the_paper_does(capsys: pytest.CaptureFixture[str]) -> None:
    Path("heads.yaml").write_text("sweep: {rows: {fpn: {model.head: semantic_fpn}, psp: {model.head: pspnet}}}")
    task = shlex.split("--model SegmentationTask --model.name mobilemamba_b4 --model.auxiliary true --table_size 128")
    main(["fit", "--config", "heads.yaml", *task, *SCENES, "--sweep.dry_run", "true"])
    printed = capsys.readouterr().out
    assert "19.76" in printed, "of 150 classes whatever the data have"
    assert "20.56" in printed, "without the second head"
