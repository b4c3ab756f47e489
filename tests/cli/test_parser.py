"""Options as a shell gives them, where the installed jsonargparse reads them otherwise than one would think."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from mobilemamba.cli import plan
from mobilemamba.data import FashionMNISTSample, ImageFolder, ImageNet
from mobilemamba.tasks import ClassificationTask


@pytest.mark.parametrize("option", [["teacher", "null"], ["teacher=null"], ["teacher=None"]], ids=" ".join)
def test_null_takes_a_setting_of_a_setting_back(root: Path, option: list[str]) -> None:
    recipe = ["--config", str(root / "experiments/imagenet/mobilemamba_kd.yaml"), "--data.root", "x"]
    weights = ["--model.distillation.weights", "own.safetensors"]
    name, *value = option
    (row,) = plan([*recipe, *weights, f"--model.distillation.{name}", *value, "--model.distillation.tau", "2"])
    found = row.config["model"]["init_args"]["distillation"]
    assert (found["teacher"], found["weights"], found["tau"], found["weight"]) == (None, "own.safetensors", 2.0, 5.0)


@pytest.mark.parametrize("kind", [FashionMNISTSample, ImageFolder, ImageNet, ClassificationTask])
def test_the_help_describes_each_argument(kind: type) -> None:
    """Also those whose description stands in a base class."""
    parser = ArgumentParser()
    arguments = parser.add_class_arguments(kind)
    silent = [action.dest for action in parser._actions if action.dest in arguments and not action.help]
    assert len(arguments) > 5
    assert not silent
