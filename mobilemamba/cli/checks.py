"""Where the weights come from, and whether they are for these pictures: mistakes that would give a wrong number."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities import rank_zero_info

from mobilemamba.cli.run_folder import holds_run
from mobilemamba.cpus import usable_cpus
from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.models import read_card
from mobilemamba.models.checkpoints import NOT_AS_IT_SAYS
from mobilemamba.models.weights_file import read_checkpoint
from mobilemamba.text import printable
from mobilemamba.training.callbacks.checkpoints import EXPORTED
from mobilemamba.training.contract import TaskContract

#: Least value of the trainer's numbers, and a lower one that has a meaning of its own.
_LEAST: dict[str, tuple[float, float | None]] = {
    "max_epochs": (1, -1),
    "max_steps": (1, -1),
    "min_epochs": (0, None),
    "min_steps": (0, None),
    "accumulate_grad_batches": (1, None),
    "check_val_every_n_epoch": (1, None),
    "num_nodes": (1, None),
    "log_every_n_steps": (0, None),
    "num_sanity_val_steps": (0, -1),
    "reload_dataloaders_every_n_epochs": (0, None),
    "gradient_clip_val": (0, None),
    "fast_dev_run": (0, None),
    "limit_train_batches": (1e-9, None),
    "limit_val_batches": (0, None),
    "limit_test_batches": (0, None),
    "overfit_batches": (0, None),
    "val_check_interval": (1e-9, None),
}
#: Those that are a share of the batches if they have a point, and else a number of them.
_SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval")
_MOST_SEED = 2**32 - 1
#: Of any of the trainer's numbers; beyond it, times and counters overflow.
_MOST = 10**9
#: Limit of the batches that a command is for; others than a training have nothing else to do.
_EVALUATED = {"validate": "limit_val_batches", "test": "limit_test_batches"}


def check_settings(command: str, config: Any) -> None:
    """Refuses settings that mean nothing, or that Lightning would pass over in silence.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        config: Its settings or those of a row, the trainer's with their names.

    Raises:
        ConfigError: Naming the setting.
    """
    seed, trainer, model = config["seed_everything"], config["trainer"], config["model"]
    for name, section in (("trainer", trainer), ("model", model), ("data", config["data"])):
        if not isinstance(section, Mapping | Namespace):
            raise ConfigError(f"{name}={section}: expected a section of settings; leave it out for the defaults")
    arguments = model.get("init_args") or {}
    if "arch" in arguments and arguments["arch"] is None:
        raise ConfigError("model.arch=null: expected choices such as {d_state: 16}; leave it out for the model's own")
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed <= _MOST_SEED:
        raise ConfigError(f"seed_everything={seed}: expected 0 to {_MOST_SEED}")
    for name, (least, special) in _LEAST.items():
        value = trainer.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown = int(value) if isinstance(value, float) and value.is_integer() else value
        # A whole one passes, as Lightning takes it: which of int and float a number is, a process's other types decide.
        if name in _SHARES and isinstance(value, float) and not (least <= value <= 1 or value.is_integer()):
            raise ConfigError(
                f"trainer.{name}={shown}: expected a share of the batches from 0 to 1, or a whole number of them"
            )
        if value > _MOST:
            raise ConfigError(f"trainer.{name}={shown}: expected {_MOST:,} or less")
        if not (value >= least or value == special):
            expected = f"{least:g} or more" if least >= 1 or least == 0 else "more than 0"
            raise ConfigError(
                f"trainer.{name}={shown}: expected {expected}{'' if special is None else f', or {special}'}"
            )
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and least > most >= 0:
            raise ConfigError(f"trainer.min_{unit}={least}: expected trainer.max_{unit}={most} or less")
    limit = _EVALUATED.get(command, "")
    if trainer.get(limit) == 0:
        raise ConfigError(
            f"trainer.{limit}=0: {command} has no pictures then; give a number of batches, or leave it out"
        )
    if trainer.get("barebones"):
        raise ConfigError(
            "trainer.barebones=True: this leaves out the loggers, checkpoints and callbacks that a run consists of; "
            "leave it out"
        )
    if (size := config.get("table_size")) is not None and size < 1:
        raise ConfigError(f"table_size={size}: expected the side of a picture in pixels, e.g. 224, or null")
    root = trainer.get("default_root_dir")
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise ConfigError(f"trainer.default_root_dir={root}: a file is in the way; give a folder, or leave it out")
    _check_devices(trainer)


def _check_devices(trainer: Mapping[str, Any]) -> None:
    devices, accelerator, cpus = str(trainer.get("devices")), trainer.get("accelerator"), usable_cpus()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(f"trainer.accelerator={accelerator}: torch finds no GPU here; give cpu, or leave it out")
    if on_cpu and devices not in ("auto", "None") and not (devices.isdigit() and 1 <= int(devices) <= cpus):
        raise ConfigError(f"trainer.devices={devices}: on a CPU these are processes; expected 1 to {cpus}, its cores")


def check_num_classes(task: LightningModule, config: Any, data: DataModule) -> None:
    """Refuses a number of classes that the data's, which are what a network gets, would take the place of.

    Args:
        task: As built.
        config: Settings that it was built from.
        data: What decides.

    Raises:
        ConfigError: If it is neither theirs nor the task's default.
    """
    parameter = inspect.signature(type(task)).parameters.get("num_classes")
    given = config.model.get("init_args", {}).get("num_classes")
    if parameter is not None and given not in (None, parameter.default, data.num_classes):
        raise ConfigError(
            f"model.num_classes={given}: the data decide it, and have {data.num_classes} classes; leave it out"
        )


def check_pictures(task: LightningModule, data: DataModule) -> None:
    """Refuses pictures that the network cannot take, by showing it a black one.

    Args:
        task: One of ours; others pass.
        data: The pictures' size and channels.

    Raises:
        ConfigError: With the network's complaint.
    """
    if not isinstance(task, TaskContract):
        return
    network = task.model
    parameter = next(network.parameters())
    data.check_arguments()
    training = {module: module.training for module in network.modules()}
    height, width = data.image_hw
    try:
        picture = torch.zeros(1, len(data.mean), height, width, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            network.eval().forward(picture)  # not called as a whole, which would compile it
    except MobileMambaError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        name = task.hparams.get("name", type(network).__name__)
        raise ConfigError(
            f"{name} does not take the data's pictures of {len(data.mean)} channels and {height}x{width} pixels: "
            f"{reason}; change data.img_size or model.in_chans"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def check_norms(config: Any, trainer: Trainer) -> None:
    """Refuses to synchronise batch norms where torch cannot.

    Args:
        config: Settings of a command.
        trainer: What was built from them.

    Raises:
        ConfigError: In this case.
    """
    if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigError("trainer.sync_batchnorm=True: torch synchronises batch norms on GPUs alone; leave it out")


def check_checkpoint(subcommand: str, config: Any) -> None:
    """Refuses a checkpoint that is not there, and an evaluation of a network that nobody has trained.

    Args:
        subcommand: ``fit``, ``validate`` or ``test``.
        config: Its settings.

    Raises:
        ConfigError: In these cases.
    """
    path, model = config.ckpt_path, config.model.get("init_args", {})
    if path in ("last", "best", "hpc"):
        if subcommand != "fit":
            raise ConfigError(f"ckpt_path={path} is for fit, which knows its run's folder; give {subcommand} a file")
        if path != "last":
            raise ConfigError(f"ckpt_path={path}: a training goes on from its last checkpoint; give last, or a file")
    elif path is not None:
        if _is_registry(path) and find_spec("litmodels") is None:
            raise ConfigError(
                f"ckpt_path={path}: Lightning's registry of models needs litmodels; pip install litmodels"
            )
        if not _elsewhere(path) and not Path(path).exists():
            raise ConfigError(f"ckpt_path={path}: no such file; give one of a run's folder checkpoints")
    elif subcommand != "fit" and model.get("weights") is None and ("weights" in model or _is_task(config)):
        option = "--weights" if "weights" in model else "--ckpt_path"
        raise ConfigError(f"{subcommand} has no weights, only a network that is not trained; give {option} FILE")


def _is_task(config: Any) -> bool:
    """Whether what is evaluated is a task of ours, or made of one."""
    path = config.model.get("class_path")
    return path is not None and issubclass(pkgutil.resolve_name(path), TaskContract)


def use_trained(subcommand: str, config: Any, given: Collection[str]) -> None:
    """Has the configuration that a run saved stand for the network that the run came to, not for what it began with.

    Args:
        subcommand: ``validate`` or ``test``.
        config: Its settings, in place.
        given: The settings that are options.

    Raises:
        ConfigError: If the run has no such network yet.
    """
    files = [Path(str(path)) for path in config.config or [] if path is not None]
    model = config.model.get("init_args", {})
    if len(files) != 1 or config.ckpt_path is not None or "model.weights" in given:
        return
    if files[0].name != "config.yaml" or not holds_run(files[0].parent):
        return
    best = files[0].parent / EXPORTED
    if "weights" not in model or not best.is_file():
        raise ConfigError(
            f"{files[0]} is of a run that has no {EXPORTED} to {subcommand}; give one of its checkpoints by --ckpt_path"
        )
    for name, value in {"weights": str(best), "partial_weights": False, "new_head": False, "ema_decay": None}.items():
        model[name] = value
    rank_zero_info(f"weights: {printable(best)}")


def misfit_remedy(subcommand: str, config: Any, fits: str) -> str:
    """What can be done where the weights that were given do not fit the network.

    Args:
        subcommand: ``fit``, ``validate`` or ``test``.
        config: Its settings.
        fits: As :class:`~mobilemamba.errors.MisfitError` has it.
    """
    card = read_card(config.model.init_args.weights)
    if card is not None and (fits != "backbone" or (subcommand != "fit" and card.class_names)):
        return NOT_AS_IT_SAYS  # as check_against_card and fill_classes have seen to it that it says the same as here
    remedy = "name the model that they are of by --model"
    if fits == "backbone":
        remedy = f"{subcommand} on pictures of as many classes as they know"
        return f"{remedy}, or start with a fresh classifier by --model.new_head true" if subcommand == "fit" else remedy
    if fits == "some" and subcommand == "fit":
        return f"{remedy}, or take what fits by --model.partial_weights true"
    return remedy


def fill_classes(config: Any) -> None:
    """Has the pictures labelled as the weights name their classes, whichever folders there are; in place.

    Args:
        config: Of an evaluation, with data that may leave ``classes`` open.

    Raises:
        WeightsError: If the weights cannot be read.
    """
    data = config.data.get("init_args", {})
    if "classes" in data and data["classes"] is None:
        names = next(_known_classes(config), None)
        data["classes"] = names and list(names[1])


def read_evaluated(path: str | Path) -> Mapping[str, Any] | None:
    """The checkpoint that is to be evaluated; None if it is not in this file system.

    Raises:
        ConfigError: If it is none of Lightning's.
        WeightsError: If it cannot be read.
    """
    if _elsewhere(path):
        return None
    content = read_checkpoint(path, mmap=Path(path).suffix != ".safetensors")
    if not isinstance(content.get("state_dict"), Mapping) or "pytorch-lightning_version" not in content:
        raise ConfigError(f"ckpt_path={path} is no checkpoint of fit; give it by --weights {path} if it holds weights")
    return content


def check_classes(config: Any, class_names: tuple[str, ...]) -> None:
    """Refuses pictures of other classes than the weights know: as many of them would pass unnoticed.

    Args:
        config: Of an evaluation.
        class_names: Of the pictures, as many as the network has outputs.

    Raises:
        ConfigError: Naming the first class that differs.
        WeightsError: If the weights cannot be read.
    """
    for path, known in _known_classes(config):
        if known == class_names:
            continue
        here, there = next(pair for pair in zip(class_names, known, strict=True) if len(set(pair)) == 2)
        raise ConfigError(
            f"the pictures are of other classes than {path}: {here!r} where the weights know {there!r}; give pictures "
            "in folders of the classes' names"
        )


def _known_classes(config: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The files of weights that name their classes, with the names."""
    for path in (config.model.get("init_args", {}).get("weights"), config.ckpt_path):
        card = None if path is None or _elsewhere(path) else read_card(path)
        if card is not None and card.class_names:
            yield path, card.class_names


def _elsewhere(path: str | Path) -> bool:
    """Whether it is an address that Lightning reads, and none of this file system."""
    return "://" in str(path) or _is_registry(path)


def _is_registry(path: str | Path) -> bool:
    return str(path).lower().partition(":")[0] == "registry"
