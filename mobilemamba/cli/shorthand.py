"""Short options: a model by its name, weights by their file, data by its folder.

``--model mobilemamba_s6 --weights s6.safetensors --data my_pictures`` stands for ``--model.name``, ``--model.weights``
and ``--data ImageFolder --data.root my_pictures`` (or ``ImageNet``, where the folder holds that). Weights that carry a
card also say which network they are of, wherever they are named. Files take the same ``model`` and ``data``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from mobilemamba.cli.yaml_keys import load_yaml, row_names
from mobilemamba.data.folders import NOWHERE, why_no_folder
from mobilemamba.data.imagenet import holds_imagenet
from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing, read_card
from mobilemamba.models.create import check_model_name

#: Endings of the files that a section may be kept in, beside the file that names them.
_FILES = (".yaml", ".yml", ".json")
#: jsonargparse's name for :func:`load_settings`; the parsers of the command line ask for it.
MODE = "yaml_with_unique_keys_and_short_forms"
#: Settings that the weights decide where they are left open; or the model, in data modules that have all of them.
_PREPROCESSING = ("img_size", "mean", "std", "interpolation", "crop_pct")


def expand_options(args: list[str]) -> list[str]:
    """The options of a command, the short ones written out, those in files before all others.

    Args:
        args: Options, without the command.

    Raises:
        ConfigError: If a short option's value is none that it could have.
        WeightsError: If the weights cannot be read.
    """
    resuming = any(arg.partition("=")[0] == "--ckpt_path" for arg in args)  # then it has what was in the weights
    files: list[str] = []  # first, as options win over them wherever they stand
    expanded: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name in ("--config", "-c"):
            files += [arg] if equals else [arg, *itertools.islice(rest, 1)]
            continue
        if name not in ("--model", "--weights", "--data", "--sweep.only"):
            expanded.append(arg)
            continue
        value = value if equals else next(rest, "")
        if name == "--sweep.only":
            expanded += [name, row_names(value)]
            continue
        if name == "--weights":
            if Path(value).is_file() or not resuming:
                read_card(value)  # says what is wrong with it
            expanded += ["--model.weights", value]
        else:
            for setting, long in _written_out(name.removeprefix("--"), value).items():
                expanded += [f"--{setting}", long]
    return files + expanded


def load_settings(text: str, path: str = "") -> Any:
    """YAML as :func:`load_yaml` reads it, a model by its name and data by their folder written out as options are.

    Raises:
        ConfigError: Also if a short form's value is none that it could have.
    """
    settings = load_yaml(text, path)
    for group in ("model", "data") if isinstance(settings, dict) else ():
        value = settings.get(group)
        if isinstance(value, str) and Path(value).suffix not in _FILES:  # a section in a file of its own stays
            long = _written_out(group, value)
            arguments = {name.partition(".")[2]: given for name, given in long.items() if name != group}
            if arguments:  # without a class, they are of the one that is chosen already
                settings[group] = {"class_path": long[group], "init_args": arguments} if group in long else arguments
    return settings


def _written_out(name: str, value: str) -> dict[str, str]:
    """The settings that ``model`` or ``data`` with a short form's value stands for; itself where it has none."""
    if name == "model" and _is_model_name(value):
        check_model_name(value)
        return {"model.name": value}
    if name == "data" and (reason := why_no_folder(value)) is None:
        return {"data": "ImageNet" if holds_imagenet(value) else "ImageFolder", "data.root": value}
    if name == "data" and (reason != NOWHERE or "/" in value or not _may_be_class(value)):
        raise ConfigError(
            f"--data {value}: {reason}; give a folder of pictures, or FashionMNISTSample, ImageFolder or ImageNet"
        )
    return {name: value}


def _may_be_class(value: str) -> bool:
    """Whether it has capitals or dots, as classes and their import paths do."""
    return "." in value or not value.islower()


def _is_model_name(value: str) -> bool:
    """Whether it is a name as timm's are, perhaps with a tag (``resnet50.a1_in1k``): no class, no file, no JSON."""
    return re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)?", value) is not None and not Path(value).is_file()


def parse_with_card(parse: Callable[[list[str]], Any], args: list[str]) -> Any:
    """Parses a command line; what it leaves open of the network is as the card of its weights says, if they have one.

    Args:
        parse: Gives the configuration, by the command's name.
        args: Command and options.

    Raises:
        ConfigError: If an option is wrong.
        WeightsError: If the weights cannot be read.
    """
    config = parse(args)
    card = _card(config[args[0]])
    if card is None:
        return config
    options = ["--model.name", card.model, "--model.in_chans", str(card.in_chans)]
    options += ["--model.arch", json.dumps(card.arch)] if card.arch else []
    options += ["--model.distillation_head", "true"] if card.distilled else []
    completed = parse([args[0], *options, *args[1:]])  # before the user's own, which win
    return completed if completed[args[0]].model.init_args.name == card.model else config


def check_against_card(config: Any) -> None:
    """Refuses settings of the network that its weights contradict; not where a part of them is to be loaded.

    Args:
        config: As the user's options have completed it.

    Raises:
        ConfigError: Naming the first of them.
        WeightsError: If the weights cannot be read.
    """
    card, model = _card(config), config.model.get("init_args", {})
    if card is None or model.get("partial_weights"):
        return
    arch = vars(model["arch"]) if model.get("arch") else {}
    pairs = [("name", model["name"], card.model), ("in_chans", model.get("in_chans", card.in_chans), card.in_chans)]
    pairs += [(f"arch.{name}", arch.get(name), there) for name, there in card.arch.items()]
    for name, here, there in pairs:
        if here is not None and json.loads(json.dumps(here)) != there:
            raise ConfigError(
                f"model.{name}={here}: {model['weights']} are weights of a {card.model} with {name}={there}; leave "
                f"model.{name} out, or take what fits by --model.partial_weights true"
            )


def _card(config: Any) -> ModelCard | None:
    model = config.model.get("init_args", {}) if config.get("model") else {}
    weights = model.get("weights")
    if not weights or not model.get("name") or (config.get("ckpt_path") and not Path(weights).is_file()):
        return None
    return read_card(weights)


def fill_preprocessing(config: Any) -> None:
    """Sets what the data's configuration leaves open to what the weights, or else the model, want; in place.

    Args:
        config: Of a command, with ``model`` and ``data`` as class paths and arguments.

    Raises:
        ConfigError: If there is no such model.
        WeightsError: If the weights cannot be read.
    """
    model, data = config.model.get("init_args", {}), config.data.get("init_args", {})
    left_open = [name for name in (*_PREPROCESSING, "upright") if name in data and data[name] is None]
    if not left_open or not model.get("name"):
        return
    sources = [path for path in (model.get("weights"), config.get("ckpt_path")) if path and Path(path).is_file()]
    card = next(filter(None, map(read_card, sources)), None)
    if card is None and not all(name in data for name in _PREPROCESSING):
        return  # pictures of one look, such as the sample's, which have a size of their own
    wanted = card.preprocessing if card is not None else Preprocessing.of_model(model["name"])
    for name in left_open:
        data[name] = getattr(wanted, name)
    if "img_size" in left_open and wanted.img_size[0] == wanted.img_size[1]:
        data["img_size"] = wanted.img_size[0]


jsonargparse.set_loader(MODE, load_settings, exceptions=(yaml.YAMLError,))
