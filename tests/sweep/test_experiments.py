"""Every published YAML parses, and every row of it takes a training step on the sample."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image
from timm.layers import DropPath

from mobilemamba.cli import plan
from mobilemamba.cli.weights import fill_preprocessing
from mobilemamba.data.fashion_mnist import read_sample
from mobilemamba.data.imagenet import PAPERS
from mobilemamba.data.imagenet_labels import imagenet_classes
from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, ModelCard, Preprocessing, load_network, save_weights
from mobilemamba.sweep import Row
from mobilemamba.sweep.plan import select
from mobilemamba.tasks import ClassificationTask
from mobilemamba_command import main

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").glob("*.yaml") if path.stem != "finetune")
FINETUNE = ROOT / "experiments/finetune.yaml"
RECIPES = sorted((ROOT / "experiments/imagenet").glob("mobilemamba*.yaml"))
FULL = ("imagenet", "coco", "ade20k")  # folders of trainings on data that are not built in
OVERLAYS = sorted((ROOT / "experiments/data").glob("*.yaml"))
XI = ROOT / "experiments/ablation_xi.yaml"
#: What makes a row's training a step. In its file, as options take as long to read as a step.
STEP = {
    "max_steps": 1,
    "max_epochs": 1,
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def rows_of(path: Path, *options: str) -> list[Row]:
    return plan(["--config", str(path), *options])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plots: None) -> object:
    monkeypatch.chdir(tmp_path)
    growth = "mobilemamba.training.callbacks.receptive_fields._draw_growth"  # has tests of its own too
    monkeypatch.setattr(growth, lambda _, path: path.touch())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_overlays_change_the_data_of_every_row(path: Path, overlay: Path, tmp_path: Path) -> None:
    rows = rows_of(path, "--config", str(overlay), "--data.root", str(tmp_path))
    swept = rows[0].values
    assert {row.config["data"]["class_path"] for row in rows} == {"mobilemamba.data.ImageNet"}
    # What the rows set themselves is the paper's, and no longer the part of it that the sample is trained at.
    for row in rows:
        assert row.config["data"]["init_args"]["img_size"] == row.config["table_size"]
    if "trainer.max_epochs" in swept:
        assert [row.config["trainer"]["max_epochs"] for row in rows] == [300, 300, 1000, 1000]
    else:
        assert {row.config["trainer"]["max_epochs"] for row in rows} == {300}
    assert {row.config["model"]["init_args"]["warmup_epochs"] for row in rows} == {20}
    # What the sample's schedule leaves out must not leak into the other data set.
    assert {row.config["data"]["init_args"]["augmentation"]["hflip"] for row in rows} == {0.5}
    assert {row.config["model"]["init_args"]["label_smoothing"] for row in rows} == {0.1}
    assert all(row.run_dir.parent.name == f"{path.stem}-{overlay.stem}" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_row_takes_a_step(path: Path) -> None:
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    teacher = timm.create_model("test_efficientnet", num_classes=10)
    save_weights(teacher, "teacher.safetensors", ModelCard("test_efficientnet", preprocessing, num_classes=10))
    for row in rows_of(path):
        if row.fused_of:  # evaluated, not trained
            continue
        if row.config["model"]["init_args"]["distillation"]:
            row.config["model"]["init_args"]["distillation"]["weights"] = "teacher.safetensors"
        for callback in row.config["trainer"]["callbacks"] or []:
            if "pictures" in callback["init_args"]:  # as few and as small, as these take longer than the step
                callback["init_args"].update(pictures=1, size=64)
        row.config["trainer"].update(STEP)
        row.config["data"]["init_args"].update(img_size=32, batch_size=2)
        row.config["table_size"] = None
        text = Path(f"{row.name}.yaml")
        text.write_text(yaml.safe_dump(row.config))
        cli = main(["fit", "--config", str(text)])
        assert cli.trainer.global_step == 1
        assert cli.trainer.callback_metrics["train/loss"].isfinite()


def test_the_sample_trains_in_proportion_to_the_papers_sizes_and_lengths() -> None:
    sizes = {row.name: row.config["data"]["init_args"]["img_size"] for row in rows_of(XI.with_stem("models"))}
    assert sizes == {"t2": 48, "t4": 48, "s6": 56, "b1": 64, "b2": 96, "b4": 128}
    rows = rows_of(XI.with_stem("ablation_strategies"))
    assert [row.config["trainer"]["max_epochs"] for row in rows] == [2, 2, 7, 7]


def test_the_teacher_can_be_given_where_one_row_has_none(tmp_path: Path) -> None:
    rows = rows_of(XI.with_stem("ablation_strategies"), "--model.distillation.teacher", "tresnet_v2_l")
    teachers = [(row.config["model"]["init_args"]["distillation"] or {}).get("teacher") for row in rows]
    assert teachers == [None, "tresnet_v2_l", "tresnet_v2_l", "tresnet_v2_l"]


def test_the_default_run_of_table_a1_is_its_eight_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # a narrow table folds long names
    main(["fit", "--config", str(XI), "--sweep.dry_run", "true"])
    printed = capsys.readouterr().out
    assert "8 of 9 rows" in printed
    assert "as_printed" not in printed
    uncounted = ["--table_size", "null"]  # which takes as long as all else
    main(["fit", "--config", str(XI), "--sweep.dry_run", "true", "--sweep.only", "as_printed*", *uncounted])
    assert "as_printed_xi_078_mu_A21" in capsys.readouterr().out


@pytest.fixture(scope="module")
def sample_as_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures of the sample in ImageNet's layout, as pictures of ten of its classes."""
    folder = tmp_path_factory.mktemp("imagenet")
    pictures, labels = read_sample()
    for part, first in (("train", 0), ("val", 40)):
        for number, label in enumerate(labels[first : first + 40].tolist(), start=first):
            place = folder / part / imagenet_classes()[0][label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[number].numpy()).save(place / f"{number}.JPEG")
    return folder


def recipe(path: Path, name: str = "mobilemamba_s6") -> dict[str, Any]:
    """The recipe of a size, with what the model decides."""
    (row,) = plan(["--config", str(path), "--model", name, "--data.root", "imagenet"])
    fill_preprocessing(Namespace(row.config))
    return row.config


def test_there_is_a_recipe_with_and_without_a_teacher() -> None:
    assert [path.stem for path in RECIPES] == ["mobilemamba", "mobilemamba_kd"]
    plain, taught = (recipe(path) for path in RECIPES)
    assert (plain["trainer"].pop("max_epochs"), taught["trainer"].pop("max_epochs")) == (300, 1000)
    assert plain["model"]["init_args"].pop("distillation") is None
    assert taught["model"]["init_args"].pop("distillation")["teacher"] == "tresnet_v2_l"
    for config in (plain, taught):
        del config["trainer"]["default_root_dir"]
    assert all(plain[part] == taught[part] for part in ("trainer", "model", "data", "seed_everything"))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_size_decides_what_a_recipe_leaves_open(name: str) -> None:
    config = recipe(RECIPES[0], name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["name"] == name
    assert data["img_size"] == VARIANTS[name].img_size
    with torch.device("meta"):
        task = ClassificationTask(**{**model, "ema_decay": None})
    assert task.hparams["drop_path_rate"] == (0.03 if name[-2] == "b" else 0)
    rates = [module.drop_prob for module in task.model.modules() if isinstance(module, DropPath)]
    assert max(rates, default=0) == pytest.approx(task.hparams["drop_path_rate"])
    # All else is common to all.
    first = recipe(RECIPES[0])
    del model["name"], data["img_size"], first["model"]["init_args"]["name"], first["data"]["init_args"]["img_size"]
    assert config == first


def test_drop_path_is_none_by_itself_and_where_another_model_has_none_of_its_own() -> None:
    with torch.device("meta"):
        assert ClassificationTask("mobilemamba_b1").hparams["drop_path_rate"] == 0
        assert ClassificationTask("test_resnet", drop_path_rate=None).hparams["drop_path_rate"] == 0


def test_a_recipes_numbers() -> None:
    config = recipe(RECIPES[1])
    expected = {
        "trainer": {"gradient_clip_val": 5.0},
        "model": {
            "lr": 3e-3,
            "reference_batch_size": 1024,
            "warmup_epochs": 20,
            "warmup_lr_ratio": 0.001,
            "min_lr_ratio": 0.01,
            "weight_decay": 0.05,
            "weight_decay_rule": "release",
            "ema_decay": 0.9998,
            "mixing": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"},
        },
    }
    augmentation = config["data"]["init_args"]["augmentation"]
    assert augmentation == json.loads(json.dumps(vars(PAPERS)))
    for part, settings in expected.items():
        found = config[part].get("init_args", config[part])
        assert {key: found[key] for key in settings} == settings
    teacher = config["model"]["init_args"]["distillation"]
    settings = {"teacher": "tresnet_v2_l", "kind": "soft", "weight": 5.0, "tau": 1.0, "antialias": False}
    assert {key: teacher[key] for key in settings} == settings


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VARIANTS, "mobilemamba_t2 with a teacher"])
def test_recipes_take_two_steps_on_real_pictures(name: str, sample_as_imagenet: Path) -> None:
    name, _, taught = name.partition(" with ")
    options = shlex.split(
        "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.precision 32 "
        "--trainer.accelerator cpu --data.img_size 32 --data.batch_size 4 --data.num_workers 0 --table_size null "
        "--trainer.logger false --trainer.enable_checkpointing false --trainer.num_sanity_val_steps 0"
    )
    if taught:  # a small teacher in the place of the large one
        save_weights(
            timm.create_model("test_efficientnet"),
            "teacher.safetensors",
            ModelCard("test_efficientnet", Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)),
        )
        options += shlex.split(
            "--model.distillation.teacher test_efficientnet --model.distillation.weights teacher.safetensors"
        )
    path = RECIPES[bool(taught)]
    cli = main(["fit", "--config", str(path), "--model", name, "--data.root", str(sample_as_imagenet), *options])
    assert cli.trainer.global_step == 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    assert {"val/top1", "val/top1_ema"} <= cli.trainer.callback_metrics.keys()


@pytest.mark.slow
def test_fine_tuning_from_an_own_run(sample_as_imagenet: Path) -> None:
    """From weights of other classes: the head starts afresh, the best network is exported with its classes' names."""
    common = shlex.split(
        "--trainer.accelerator cpu --trainer.limit_train_batches 2 --data.num_workers 0 --data.batch_size 8 "
        "--data.img_size 32 --table_size null --model.arch.depths [1,1,1] --model.arch.embed_dims [16,16,16]"
    )
    main(["fit", *common, "--name", "first", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"])
    pictures, first = sample_as_imagenet / "train", "runs/first/best.safetensors"
    options = ["--data.root", str(pictures), "--weights", first, "--trainer.max_epochs", "2"]
    cli = main(["fit", "--config", str(FINETUNE), *options, *common])
    rates = {group["lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert len(rates) > 3  # by depth
    network, card = load_network("runs/finetune/best.safetensors")
    assert card.class_names == tuple(sorted(path.name for path in pictures.iterdir()))
    assert network.num_classes == len(card.class_names)
    assert card.preprocessing.img_size == (32, 32)


def test_the_page_lists_every_experiment_and_its_rows() -> None:
    page = (ROOT / "experiments/README.md").read_text()
    listed = {name: int(rows) for name, rows in re.findall(r"\| \[\w+\]\((\w+)\.yaml\) \| (\d+) \|", page)}
    assert set(listed) == {path.stem for path in EXPERIMENTS}
    for path in EXPERIMENTS:
        sweep = yaml.safe_load(path.read_text())["sweep"]
        rows = [*sweep["rows"], *sweep.get("fused", ())]
        assert listed[path.stem] == len([row for row in rows if not row.startswith("as_printed")]), path.stem
        # Table A5 prints no speeds. Where else a number of the paper's is not there, a note says why.
        printed = {"top1"} if path.stem == "ablation_drop_path" else {"top1", "throughput"}
        for row in rows:
            assert printed <= sweep["paper"].get(row, {}).keys() or row in sweep["notes"], (path.stem, row)
    full = {path: yaml.safe_load(path.read_text()) for part in FULL for path in (ROOT / "experiments" / part).glob("*")}
    for path, content in full.items():
        rows = str(len(content["sweep"]["rows"])) if "sweep" in content else ""
        assert re.search(rf"\({path.parent.name}/{path.name}\)(?:, \[[^|]*\))? \| ?{rows} \|", page), path


def test_the_pages_commands_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "experiments/README.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "experiments", "experiments")
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {command[1] for command in commands} == {"fit", "validate", "report"}
    for command in commands:
        if command[1] == "fit":
            assert len(plan(command[2:])) >= 5
        else:  # nothing was trained here
            with pytest.raises(ConfigError, match=r"runs/ablation_ssm is finished|no such folder: runs/ablation_ssm"):
                main(command[1:])


@pytest.fixture(scope="module")
def planned() -> dict[tuple[str, ...], list[Row]]:
    """Options -> their rows, as several commands differ in the rows that they select alone."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_commands_in_a_file_are_understood(path: Path, planned: dict[tuple[str, ...], list[Row]]) -> None:
    head = re.sub(r"\\\n# +", "", path.read_text())
    lines = [re.split(r" {3,}", line)[0] for line in re.findall(r"^#   mobilemamba (.*)$", head, re.MULTILINE)]
    shutil.copytree(ROOT / "experiments", "experiments")
    Path("MY_FOLDER/sky").mkdir(parents=True)
    for command, *options in map(shlex.split, lines):
        if command == "fit":
            apart = {}
            for name in ("--weights", "--sweep.only"):
                if name in options:
                    at = options.index(name)
                    apart[name] = options[at + 1]
                    del options[at : at + 2]
            rows = planned[tuple(options)] = planned.get(tuple(options)) or plan(options)
            assert select(rows, apart.get("--sweep.only", "*"))
        else:
            assert command in ("predict", "validate") or (command == "summary" and options[:-1] == ["--config"])
