"""Mistakes with weights that would otherwise end in a traceback, or in a number that means nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from jsonargparse import Namespace
from PIL import Image

from mobilemamba.cli.weights import check_checkpoint, check_classes, fill_classes, use_trained
from mobilemamba.errors import ConfigError, DataError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, load_network, save_weights
from mobilemamba_command import main


def config(ckpt_path: str | None = None, **model: str | None) -> Namespace:
    task = Namespace(class_path="lightning.pytorch.LightningModule", init_args=Namespace(**model))
    return Namespace(ckpt_path=ckpt_path, model=task)


def save(path: str, *class_names: str) -> str:
    name = "test_efficientnet"
    card = ModelCard(name, Preprocessing.of_model(name), num_classes=2, class_names=class_names)
    save_weights(timm.create_model(name, num_classes=2), path, card)
    return path


@pytest.fixture
def weights() -> str:
    return save("best.safetensors", "cat", "dog")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_that_is_not_there(command: str) -> None:
    for path in ("none.ckpt", "last.ckpt", "no/best.ckpt"):
        with pytest.raises(ConfigError, match=f"ckpt_path={path}: no such file; give"):
            check_checkpoint(command, config(path))


def test_what_lightning_finds_is_left_to_it() -> None:
    for path in (None, "last", "s3://bucket/run.ckpt"):
        check_checkpoint("fit", config(path, weights=None))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_needs_weights(command: str, weights: str) -> None:
    with pytest.raises(ConfigError, match=f"{command} has no weights, only a network that is not trained; give --wei"):
        check_checkpoint(command, config(weights=None))
    with pytest.raises(ConfigError, match=f"ckpt_path=last is for fit, .*; give {command} a file"):
        check_checkpoint(command, config("last", weights=None))
    check_checkpoint(command, config(weights=weights))
    check_checkpoint(command, config(weights, weights=None))
    check_checkpoint(command, config())  # another task, which may have its weights from anywhere


def test_other_classes_are_refused(weights: str) -> None:
    for given in (config(weights=weights), config(weights, weights=None), config(weights)):
        check_classes(given, ("cat", "dog"))
        with pytest.raises(ConfigError, match=r"best.safetensors: 'cow' where the weights know 'dog'; give"):
            check_classes(given, ("cat", "cow"))
    with pytest.raises(WeightsError, match="absent"):
        check_classes(config(weights="absent.pth"), ("cat", "dog"))


@pytest.mark.parametrize(
    ("file", "ckpt_path", "given", "is_used"),
    [
        ("config.yaml", None, [], True),
        ("other.yaml", None, [], False),
        ("config.yaml", "run/checkpoints/last.ckpt", [], False),
        ("config.yaml", None, ["model.weights"], False),
    ],
)
def test_a_run_s_configuration_alone_stands_for_its_trained_network(
    file: str, ckpt_path: str | None, given: list[str], is_used: bool
) -> None:
    for path in ("run/checkpoints/last.ckpt", "run/best.safetensors"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    chosen = config(ckpt_path, weights="start.pth")
    chosen.config = [f"run/{file}"]
    use_trained("validate", chosen, given)
    trained = {"weights": "run/best.safetensors", "partial_weights": False, "new_head": False, "ema_decay": None}
    assert vars(chosen.model.init_args) == (trained if is_used else {"weights": "start.pth"})


def test_weights_that_name_no_classes_fit_all() -> None:
    check_classes(config(weights=save("plain.safetensors")), ("cat", "cow"))
    check_classes(config("s3://bucket/run.ckpt"), ("cat", "cow"))


def test_data_that_leaves_its_classes_open_takes_those_of_the_weights(weights: str) -> None:
    for model in ({"weights": weights}, {"weights": None}):
        given = config(None if model["weights"] else weights, **model)
        given.data = Namespace(init_args=Namespace(classes=None))
        fill_classes(given)
        assert given.data.init_args.classes == ["cat", "dog"]
        given.data.init_args.classes = ["dog", "cat"]
        fill_classes(given)
        assert given.data.init_args.classes == ["dog", "cat"]
    nameless = config(weights=save("plain.safetensors"))
    for data in (Namespace(classes=None), Namespace()):
        nameless.data = Namespace(init_args=data)
        fill_classes(nameless)
        assert not data.get("classes")


def test_pictures_are_labelled_by_the_names_of_the_weights_classes(tmp_path: Path) -> None:
    """Of some of the classes, and in another order than the folders': the network says "horse" to all of them."""
    model = timm.create_model("test_efficientnet", num_classes=3)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([1.0, 0.0, 0.0])
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    card = ModelCard("test_efficientnet", preprocessing, 3, class_names=("horse", "dog", "cat"))
    save_weights(model, tmp_path / "own.safetensors", card)
    for name, count in (("cat", 1), ("horse", 3)):
        (tmp_path / "pets/Validation" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32)).save(tmp_path / "pets/Validation" / name / f"{i}.png")
    options = ["--weights", f"{tmp_path}/own.safetensors", "--data", f"{tmp_path}/pets", "--data.num_workers", "0"]
    cli = main(["validate", *options, "--trainer.accelerator", "cpu"])
    assert cli is not None
    assert cli.trainer.callback_metrics["val/top1"] == 75
    (tmp_path / "pets/Validation/cow").mkdir()
    with pytest.raises(DataError, match=r"Validation/cow is none of the 3 classes \(horse, dog, cat\) of the weights"):
        main(["validate", *options])


def test_a_training_learns_the_classes_of_its_own_pictures(weights: str, tmp_path: Path) -> None:
    for part in ("train/cow", "train/hen", "train/pig", "val/cow"):
        (tmp_path / "farm" / part).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "farm" / part / "0.png")
    options = ["--weights", weights, "--model.new_head", "true", "--data", f"{tmp_path}/farm"]
    with pytest.raises(ConfigError, match=r"model.num_classes=7: the data decide it, and have 3 classes"):
        main(["fit", *options, "--model.num_classes", "7"])


def test_weights_of_another_task_are_named(weights: str) -> None:
    _, card = load_network(weights, verbose=False)
    save_weights(torch.nn.Linear(2, 2), "masks.safetensors", replace(card, task="masks"))
    with pytest.raises(WeightsError, match="of a network for masks, and ClassificationTask is for classification; ch"):
        main(["validate", "--weights", "masks.safetensors"])


@pytest.mark.parametrize(
    ("data", "given"), [("FashionScenes", "masks"), ("FashionObjects", "boxes"), ("FashionMNISTSample", "labels")]
)
def test_targets_of_another_task_are_refused_before_the_weights_are_loaded(data: str, given: str) -> None:
    """By what the file says of itself, as its number of classes is no help."""
    task, wanted = ("detection", "boxes") if given == "labels" else ("classification", "labels")
    options = {"task": task, "head": "ssdlite" if task == "detection" else ""}
    card = ModelCard("mobilemamba_t2", Preprocessing.of_model("mobilemamba_t2"), 3, **options)
    save_weights(torch.nn.Linear(2, 2), "own.safetensors", card)
    said = f"own.safetensors holds weights for {task}, and {data} gives {given}; give data with {wanted}, or weights"
    for command in ("validate", "fit"):
        with pytest.raises(ConfigError, match=f"^{said} of a network for {given}$"):
            main([command, "--weights", "own.safetensors", "--data", data])


def test_data_of_more_classes_than_the_weights_know_are_refused() -> None:
    card = ModelCard("test_resnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 2, class_names=("cat", "dog"))
    save_weights(torch.nn.Linear(2, 2), "own.safetensors", card)
    with pytest.raises(
        ConfigError,
        match=r"^own.safetensors knows 2 classes, and FashionMNISTSample has 10; give .* by --data$",
    ):
        main(["validate", "--weights", "own.safetensors"])


def test_data_and_task_that_are_chosen_fit_each_other() -> None:
    with pytest.raises(ConfigError, match="data=FashionScenes: its targets are masks, and a ClassificationTask learns"):
        main(["fit", "--data", "FashionScenes", "--model", "test_efficientnet"])


@pytest.mark.parametrize(
    ("command", "model", "named", "remedy"),
    [
        ("validate", "test_efficientnet", False, "validate on pictures of as many classes as they know"),
        ("validate", "test_resnet", False, "name the model that they are of by --model"),
        (
            "validate",
            "test_efficientnet",
            True,
            "the file's description of its network does not match its tensors: write.*",
        ),
        ("fit", "test_efficientnet", False, "fit on .*, or start with a fresh classifier by --model.new_head true"),
        (
            "fit",
            "test_resnet",
            False,
            "name the model .* by --model, or take what fits by --model.partial_weights true",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_with_what_the_command_can_do(
    tmp_path: Path, command: str, model: str, named: bool, remedy: str
) -> None:
    network, card = timm.create_model("test_efficientnet", num_classes=3), None
    for name in ("cat", "dog"):
        (tmp_path / "pets/val" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "pets/val" / name / "0.png")
    if named:
        card = ModelCard(model, Preprocessing.of_model(model), 2, class_names=("cat", "dog"))
    save_weights(network, "own.safetensors", card)
    with pytest.raises(WeightsError, match=rf"^own.safetensors (does not fit|holds no ResNet): .*; {remedy}$"):
        main([command, "--model", model, "--weights", "own.safetensors", "--data", f"{tmp_path}/pets"])
