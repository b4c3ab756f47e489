"""Checks that raise a ConfigError for meaningless settings and for data that do not fit the network.

``config`` always denotes the settings of a command or of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator

from mobilemamba.cpus import usable_cpus
from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.files import check_writable, make_folder
from mobilemamba.models.evaluation import evaluating
from mobilemamba.text import printable
from mobilemamba.training.contract import TaskContract

#: Numbers of the trainer that must be above 0.
_ABOVE_0 = (
    *("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"),
    *("limit_train_batches", "val_check_interval"),
)
#: Numbers of the trainer that may be -1 for no limit.
_UNLIMITED = ("max_epochs", "max_steps", "num_sanity_val_steps", "devices")
#: Numbers of the trainer that are a fraction of the batches as floats, and a number of batches as integers.
_SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval")
_MOST_SEED = 2**32 - 1
#: Kind of targets -> data that have them.
_DATA = {
    "labels": "a folder with a folder of pictures for each class",
    "masks": "a folder with images/, masks/ and classes.txt",
    "boxes": "a folder with train.json in COCO's format, or in YOLO's layout",
}
#: Largest value of the trainer's numbers, above which times and counters overflow.
_MOST = 10**9


def check_settings(command: str, config: Any) -> None:
    """Raises an error for settings that are meaningless, or that Lightning would silently ignore."""
    for name in ("trainer", "model", "data"):
        if not isinstance(config[name], Mapping | Namespace):
            raise _impossible(name, config[name], "a section of settings; leave it out for the defaults")
    seed, trainer, arguments = config["seed_everything"], config["trainer"], config["model"].get("init_args") or {}
    if "arch" in arguments and arguments["arch"] is None:
        raise _impossible("model.arch", "null", "choices such as {d_state: 16}; leave it out for the model's own")
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed <= _MOST_SEED:
        raise _impossible("seed_everything", seed, f"0 to {_MOST_SEED}")
    for name, value in (vars(trainer) if isinstance(trainer, Namespace) else trainer).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, value)
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and least > most >= 0:
            raise _impossible(f"trainer.min_{unit}", least, f"trainer.max_{unit}={most} or less")
    limit = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(command, "")
    if trainer.get(limit) == 0:
        raise _impossible(f"trainer.{limit}", 0, f"more, as {command} has no pictures then; leave it out for all")
    if trainer.get("barebones"):
        raise _impossible("trainer.barebones", True, "false: a run consists of loggers, checkpoints and callbacks")
    if (size := config.get("table_size")) is not None and size < 1:
        raise _impossible("table_size", size, "the side of a picture in pixels, e.g. 224, or null")
    root = trainer.get("default_root_dir")
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise _impossible("trainer.default_root_dir", root, "a folder, and a file is in the way; choose another")
    _check_devices(trainer)


def check_report(command: str, config: Any) -> None:
    """Raises an error for options of evaluations in a training, and for files and folders that are not writable."""
    for name in ("per_class", "plots"):
        if command == "fit" and config[name] is not None:
            raise ConfigError(f"{name}={config[name]} is for validate and test; leave it out of fit")
    if command == "fit" and (config.window is not None or config.tta):
        raise ConfigError("window and tta are for validate and test; leave them out of fit")
    if config.per_class is not None:
        check_writable(Path(config.per_class), "--per_class", [".csv"])
    if config.plots is not None:
        make_folder(Path(config.plots), "--plots")


def _impossible(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name}={value}: expected {expected}")


def _check_number(name: str, value: float) -> None:
    whole = float(value).is_integer()  # whether given as 1 or 1.0, as only Lightning decides how to interpret it
    shown = int(value) if whole else value
    if name in _SHARES and not whole and value > 1:
        raise _impossible(f"trainer.{name}", shown, "a share of the batches from 0 to 1, or a whole number of them")
    if value > _MOST:
        raise _impossible(f"trainer.{name}", shown, f"{_MOST:,} or less")
    if not (value > 0 or (value == 0 and name not in _ABOVE_0) or (value == -1 and name in _UNLIMITED)):
        least = "more than 0" if name in _ABOVE_0 else "0 or more"
        raise _impossible(f"trainer.{name}", shown, least + (", or -1 for no limit" if name in _UNLIMITED else ""))


def _check_devices(trainer: Mapping[str, Any]) -> None:
    devices, accelerator, cpus = str(trainer.get("devices")), trainer.get("accelerator"), usable_cpus()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise _impossible("trainer.accelerator", accelerator, "cpu or auto, as torch finds no GPU here")
    if on_cpu and devices not in ("auto", "None") and not (devices.isdigit() and 1 <= int(devices) <= cpus):
        raise _impossible("trainer.devices", devices, f"1 to {cpus}, the cores here, as processes of a CPU; or auto")


def check_num_classes(task: LightningModule, config: Any, data: DataModule) -> None:
    """Raises an error for a given number of classes that differs from the data's, which overrides it."""
    parameter = inspect.signature(type(task)).parameters.get("num_classes")
    given = config.model.get("init_args", {}).get("num_classes")
    if parameter is not None and given not in (None, parameter.default, data.num_classes):
        raise ConfigError(
            f"model.num_classes={given}: the data decide it, and have {data.num_classes} classes; leave it out"
        )


def check_targets(kind: type, data: DataModule, weights: Mapping[str, str]) -> None:
    """Raises an error if the data's targets are for another task.

    Args:
        kind: Class of the task.
        data: The data module.
        weights: Given weights files -> tasks that they are for.
    """
    if not issubclass(kind, TaskContract) or isinstance(data.form, kind.form):
        return
    source = type(data).__name__
    given, wanted = (form.__name__.lower() for form in (type(data.form), kind.form))
    if path := next((path for path, task in weights.items() if task == kind.task), None):
        raise ConfigError(
            f"{printable(path)} holds weights for {kind.task}, and {source} gives {given}; give data with "
            f"{wanted}, or weights of a network for {given}"
        )
    raise ConfigError(
        f"data={source}: its targets are {given}, and a {kind.__name__} learns from {wanted}; choose another task, or "
        f"data such as {_DATA[wanted]}"
    )


def check_pictures(task: LightningModule, data: DataModule) -> None:
    """Raises an error if the network does not accept the data's pictures, by running it on a black one."""
    if not isinstance(task, TaskContract):
        return
    network = task.model
    parameter = next(network.parameters(), torch.zeros(()))  # an exported network has none
    data.check_arguments()
    height, width = data.image_hw
    try:
        picture = torch.zeros(1, len(data.mean), height, width, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad(), evaluating(network):
            network.forward(picture)  # not __call__, which would compile it
    except MobileMambaError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        name = task.hparams.get("name", type(network).__name__)
        raise ConfigError(
            f"{name} does not take the data's pictures of {len(data.mean)} channels and {height}x{width} pixels: "
            f"{reason}; change data.img_size or model.in_chans"
        ) from error


def check_norms(config: Any, trainer: Trainer) -> None:
    """Raises an error if batch norms are to be synchronised on CPUs, which torch does not support."""
    if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigError("trainer.sync_batchnorm=True: torch synchronises batch norms on GPUs alone; leave it out")
