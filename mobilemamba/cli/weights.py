"""The weights of a command, and the settings that they determine: network, classes and preprocessing.

Weights with a model card determine the network, wherever they are given. ``config`` always denotes the settings of a
command, which are completed in place. Invalid settings raise a ConfigError, unreadable weights a WeightsError.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.cli.options import read_options
from mobilemamba.cli.parser import given_settings
from mobilemamba.cli.start import config_files, holds_run
from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing, read_card
from mobilemamba.models.checkpoints import NOT_AS_IT_SAYS
from mobilemamba.models.runtime import runtime_of
from mobilemamba.models.weights_file import read_checkpoint
from mobilemamba.tasks import TASKS, ClassificationTask
from mobilemamba.tasks.settings import init_arguments
from mobilemamba.text import printable
from mobilemamba.training.callbacks.checkpoints import EXPORTED
from mobilemamba.training.contract import TaskContract

#: Settings that, if not given, come from the weights; or from the model, for data modules that have all of them.
_PREPROCESSING = ("img_size", "mean", "std", "interpolation", "crop_pct")


def _arguments(config: Any, section: str) -> Any:
    """Returns the arguments of ``model`` or ``data`` in a command's settings."""
    return config[section].get("init_args", {}) if config.get(section) else {}


def cards(config: Any) -> Iterator[tuple[str, ModelCard]]:
    """Yields the weights files given to a command that have a model card, with their cards."""
    weights, checkpoint = _arguments(config, "model").get("weights"), config.get("ckpt_path")
    for path in (weights, checkpoint):
        # A checkpoint's initial weights may no longer exist, and the checkpoint itself may be remote.
        if path and (Path(path).is_file() or not checkpoint) and (card := read_card(path)):
            yield path, card


def _card(config: Any) -> ModelCard | None:
    model = _arguments(config, "model")
    found = dict(cards(config)) if model.get("weights") and model.get("name") else {}
    return found.get(model.get("weights"))


def parse_with_card(parse: Callable[[list[str]], Any], args: list[str]) -> Any:
    """Parses a command line; settings of the network that are not given come from the card of its weights, if any.

    ``parse`` returns the configuration by the command's name; ``args`` are the command and its options.
    """
    named = [value for name, value, _ in read_options(args) if name == "--model.weights" and value]
    start = _task_of(read_card(named[-1])) if named and Path(named[-1]).is_file() else []
    config = parse([args[0], *start, *args[1:]])
    if args[0] != "fit" and _evaluated_run(config[args[0]], given_settings(args)):
        return config  # it says all of the network itself, and the weights that it began with may be gone
    card = _card(config[args[0]])
    if card is None:
        return config
    kind, options = kind_of(config[args[0]]), start or _task_of(card)  # before the user's own, which override them
    if options and not start:  # the weights are given in a file
        kind = kind_of(parse([args[0], *options, *args[1:]])[args[0]])
    known = init_arguments(kind)
    for name, value in _settings(kind, card).items():
        if value and name in known:
            options += [f"--model.{name}", value if isinstance(value, str) else json.dumps(value)]
    completed = parse([args[0], *options, *args[1:]])
    return completed if completed[args[0]].model.init_args.get("name") == card.model else config


def _task_of(card: ModelCard | None) -> list[str]:
    """Returns the option that selects the task of a card, unless it is the default task."""
    own = None if card is None else TASKS.get(card.task)
    return [] if own in (None, ClassificationTask) else ["--model", f"{own.__module__}.{own.__name__}"]


def kind_of(config: Any) -> type:
    """Returns the class of a command's task."""
    return pkgutil.resolve_name(config.model.class_path)


def _settings(kind: type, card: ModelCard) -> dict[str, Any]:
    """Returns the arguments of a task that a card determines."""
    return kind.settings_of(card) if issubclass(kind, TaskContract) else {"name": card.model}


def check_against_card(config: Any) -> None:
    """Raises an error for settings of the network that contradict its weights, unless only a part is to be loaded."""
    card, model = _card(config), _arguments(config, "model")
    if card is None or model.get("partial_weights"):
        return
    arch, settings = vars(model["arch"]) if model.get("arch") else {}, _settings(kind_of(config), card)
    choices = settings.pop("arch", {})
    pairs = [(name, model.get(name), there) for name, there in settings.items()]
    pairs += [(f"arch.{name}", arch.get(name), there) for name, there in choices.items()]
    for name, here, there in pairs:
        if here is not None and json.loads(json.dumps(here)) != there:
            raise ConfigError(
                f"model.{name}={here}: {model['weights']} are weights of a {card.model} with {name}={there}; leave "
                f"model.{name} out, or take what fits by --model.partial_weights true"
            )


def fill_preprocessing(config: Any) -> None:
    """Sets the data's preprocessing, where it is not given, to that of the weights, or else of the model; in place."""
    model, data = _arguments(config, "model"), _arguments(config, "data")
    left_open = [name for name in (*_PREPROCESSING, "upright", "resize") if name in data and data[name] is None]
    if not left_open or not model.get("name"):
        return
    card = next((card for _, card in cards(config)), None)
    if card is None and not all(name in data for name in _PREPROCESSING):
        return  # data such as the sample have their own fixed preprocessing and default size
    if card is not None and card.task != getattr(kind_of(config), "task", ""):
        left_open = [name for name in left_open if name in ("mean", "std", "upright")]  # only a backbone, not its size
    wanted = card.preprocessing if card is not None else Preprocessing.of_model(model["name"])
    for name in left_open:
        data[name] = getattr(wanted, name)
    if "img_size" in left_open and wanted.img_size[0] == wanted.img_size[1]:
        data["img_size"] = wanted.img_size[0]


def scale_as_weights(config: Any, data: Any) -> None:
    """Makes the data of an evaluation scale pictures down as the weights' card says, and so as ``predict`` does."""
    card = next((card for _, card in cards(config)), None)
    if card is not None and card.task == getattr(kind_of(config), "task", "") and hasattr(data, "antialias"):
        data.antialias = card.preprocessing.antialias


def fill_classes(config: Any) -> None:
    """Sets the classes of an evaluation's data to those of the weights, even if some folders are missing."""
    data = _arguments(config, "data")
    if "classes" in data and data["classes"] is None:
        data["classes"] = next((list(card.class_names) for _, card in cards(config) if card.class_names), None)


def check_class_count(config: Any, data: DataModule) -> None:
    """Raises an error if data to be evaluated have more or fewer classes than the weights' card says.

    The network would be built for the data's classes, and the error be about the shape of its tensors.
    """
    task = getattr(kind_of(config), "task", "")
    for path, card in cards(config):
        if card.task == task and card.num_classes != data.num_classes:
            raise ConfigError(
                f"{printable(path)} knows {card.num_classes} classes, and {type(data).__name__} has "
                f"{data.num_classes}; give data of its classes by --data"
            )


def check_classes(config: Any, class_names: tuple[str, ...]) -> None:
    """Raises an error if the data's classes differ from those of the weights, even if their number is the same."""
    in_folders = "classes" in _arguments(config, "data")
    remedy = "pictures in folders of the classes' names" if in_folders else "data of the same classes in this order"
    for path, card in cards(config):
        for here, there in zip(class_names, card.class_names, strict=True) if card.class_names else ():
            if here != there:
                raise ConfigError(
                    f"the pictures are of other classes than {path}: {here!r} where the weights know {there!r}; give "
                    f"{remedy}"
                )


def check_checkpoint(subcommand: str, config: Any) -> None:
    """Raises an error for a checkpoint that does not exist, and for an evaluation without weights."""
    path, model = config.ckpt_path, _arguments(config, "model")
    if subcommand == "fit" and model.get("weights") and runtime_of(model["weights"]):
        raise ConfigError(f"weights={model['weights']} is an exported network; train the weights it was made of")
    if path in ("last", "best", "hpc"):
        if subcommand != "fit":
            raise ConfigError(f"ckpt_path={path} is for fit, which knows its run's folder; give {subcommand} a file")
        if path != "last":
            raise ConfigError(f"ckpt_path={path}: a training goes on from its last checkpoint; give last, or a file")
    elif path is not None:
        if _is_registry(path) and find_spec("litmodels") is None:
            raise ConfigError(f"ckpt_path={path}: a registry of models needs litmodels; pip install litmodels")
        if not _elsewhere(path) and not Path(path).exists():
            raise ConfigError(f"ckpt_path={path}: no such file; give one of a run's folder checkpoints")
    elif (
        subcommand != "fit"
        and model.get("weights") is None
        and ("weights" in model or issubclass(kind_of(config), TaskContract))
    ):
        option = "--weights" if "weights" in model else "--ckpt_path"
        raise ConfigError(f"{subcommand} has no weights, only a network that is not trained; give {option} FILE")


def use_trained(subcommand: str, config: Any, given: Collection[str]) -> None:
    """Makes the configuration saved by a run refer to the run's trained network, not to its initial weights."""
    folder, model = _evaluated_run(config, given), _arguments(config, "model")
    if folder is None:
        return
    best = folder / EXPORTED
    if "weights" not in model or not best.is_file():
        raise ConfigError(
            f"{folder / 'config.yaml'} is of a run that has no {EXPORTED} to {subcommand}; give one of its checkpoints "
            "by --ckpt_path"
        )
    for name, value in {"weights": str(best), "partial_weights": False, "new_head": False, "ema_decay": None}.items():
        model[name] = value
    rank_zero_info(f"weights: {printable(best)}")


def _evaluated_run(config: Any, given: Collection[str]) -> Path | None:
    """The folder of the run whose saved configuration is all that names the network to evaluate; else None."""
    files = config_files(config)
    if len(files) != 1 or config.ckpt_path is not None or "model.weights" in given:
        return None
    folder = files[0].parent
    return folder if files[0].name == "config.yaml" and holds_run(folder) else None


def read_evaluated(path: str | Path) -> Mapping[str, Any] | None:
    """Reads the checkpoint that is to be evaluated; None if it is not in this file system."""
    if _elsewhere(path):
        return None
    content = read_checkpoint(path, mmap=Path(path).suffix != ".safetensors")
    if not isinstance(content.get("state_dict"), Mapping) or "pytorch-lightning_version" not in content:
        raise ConfigError(f"ckpt_path={path} is no checkpoint of fit; give it by --weights {path} if it holds weights")
    return content


def misfit_remedy(subcommand: str, config: Any, fits: str) -> str:
    """Returns the remedy if the given weights do not fit the network."""
    card, kind = read_card(config.model.init_args.weights), kind_of(config)
    task = getattr(kind, "task", "")
    filled = card is not None and card.class_names and "classes" in _arguments(config, "data")
    if card is not None and task not in ("", card.task):
        return (
            f"it is of a network for {card.task}, and {kind.__name__} is for {task}; choose its task by --model CLASS"
        )
    if card is not None and (fits != "backbone" or (subcommand != "fit" and filled)):
        return NOT_AS_IT_SAYS  # as check_against_card and fill_classes have made the settings agree with the card
    remedy = "name the model that they are of by --model"
    if fits == "backbone":
        remedy = f"{subcommand} on pictures of as many classes as they know"
        return f"{remedy}, or start with a fresh classifier by --model.new_head true" if subcommand == "fit" else remedy
    if fits == "some" and subcommand == "fit":
        return f"{remedy}, or take what fits by --model.partial_weights true"
    return remedy


def _elsewhere(path: str | Path) -> bool:
    """Whether a path is a remote address that Lightning reads."""
    return "://" in str(path) or _is_registry(path)


def _is_registry(path: str | Path) -> bool:
    return str(path).lower().partition(":")[0] == "registry"
