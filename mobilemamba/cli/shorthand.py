"""Short options: a model by its name, weights by their file, data by their folder.

``--model mobilemamba_s6 --weights s6.safetensors --data my_pictures`` is short for ``--model.name``,
``--model.weights`` and ``--data ImageFolder --data.root my_pictures`` (or ``ImageNet``, ``SegmentationFolder``,
``ADE20K``, ``COCO``, ``COCOFolder`` or ``YOLOFolder``, if the folder has that layout). ``model`` and ``data`` can be
used in files, too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from mobilemamba.cli.options import read_options
from mobilemamba.cli.yaml_keys import load_yaml, row_names
from mobilemamba.data import ADE20K, COCO, COCOFolder, SegmentationFolder, YOLOFolder
from mobilemamba.data.folders import NOWHERE, why_no_folder
from mobilemamba.data.imagenet import holds_imagenet
from mobilemamba.errors import ConfigError
from mobilemamba.models import read_card
from mobilemamba.models.create import check_model_name

#: Extensions of files that may contain a section, given by their name.
_FILES = (".yaml", ".yml", ".json")
#: Options that may be given without a value, as those of the other commands.
_SWITCHES = ("--tta", "--worst_first")
#: Parser mode by which jsonargparse uses :func:`load_settings`.
MODE = "yaml_with_unique_keys_and_short_forms"
#: The command's working folder, as jsonargparse reads a file in that file's folder.
_here: ContextVar[Path] = ContextVar("here", default=Path())


def expand_options(args: list[str]) -> list[str]:
    """Expands the short options of a command, and moves configuration files to the front."""
    given = list(read_options(args))
    resuming = any(option.name == "--ckpt_path" for option in given)  # then the weights are in the checkpoint
    files: list[str] = []  # first, as options override them wherever they are given
    expanded: list[str] = []
    for name, value, parts in given:
        if name in ("--config", "-c"):
            files += parts
        elif value is None and name in _SWITCHES:
            expanded += [name, "true"]
        elif value is None:
            expanded += [name.replace("--weights", "--model.weights")]
        elif name == "--weights":
            if Path(value).is_file() or not resuming:
                read_card(value)  # raises an error if the file is invalid
            expanded += ["--model.weights", value]
        elif name == "--sweep.only":
            expanded += [name, row_names(value)]
        elif name in ("--model", "--data"):
            for setting, long in _written_out(name.removeprefix("--"), value).items():
                expanded += [f"--{setting}", long]
        else:
            expanded += parts
    return files + expanded


@contextlib.contextmanager
def paths_from_here() -> Iterator[None]:
    """Context manager in which files that are read name folders of data from the current folder, as options do."""
    token = _here.set(Path.cwd())
    try:
        yield
    finally:
        _here.reset(token)


def load_settings(text: str, path: str = "") -> Any:
    """Reads YAML with :func:`load_yaml`, and expands a model given by name and data given by folder."""
    settings = load_yaml(text, path)
    if isinstance(settings, dict | list) and _is_path(text):
        return text
    for group in ("model", "data") if isinstance(settings, dict) else ():
        value = settings.get(group)
        if isinstance(value, str) and Path(value).suffix not in _FILES:  # not the name of a file with the section
            with contextlib.chdir(_here.get()):
                long = _written_out(group, value)
            arguments = {name.partition(".")[2]: given for name, given in long.items() if name != group}
            if arguments:  # without a class, they are arguments of the class that is already chosen
                settings[group] = {"class_path": long[group], "init_args": arguments} if group in long else arguments
    return settings


def _is_path(text: str) -> bool:
    """Whether a text is a path, although YAML reads it as settings: ``runs/a: b``."""
    if "\n" in text or text.startswith(("{", "[")):
        return False
    return "/" in text.partition(": ")[0] or os.path.exists(text)  # noqa: PTH110 - Path raises for a long text


def _written_out(name: str, value: str) -> dict[str, str]:
    """Returns the settings that a short form of ``model`` or ``data`` stands for, or the setting itself."""
    if name == "model" and _is_model_name(value):
        check_model_name(value)
        return {"model.name": value}
    if name == "data" and (reason := why_no_folder(value)) is None:
        return {"data": _kind_of_folder(value), "data.root": value}
    may_be_class = "/" not in value and ("." in value or not value.islower())  # an import path, or has capitals
    if name == "data" and (reason != NOWHERE or not may_be_class):
        if reason == NOWHERE and not Path(value).is_absolute():
            reason += f" in {Path.cwd()}"  # not beside the file that names it
        raise ConfigError(
            f"--data {value}: {reason}; give a folder of pictures, or the name of a data set, such as "
            "FashionMNISTSample, ImageFolder or ImageNet"
        )
    return {name: value}


def _kind_of_folder(folder: str) -> str:
    """Returns the name of the data module for a folder, according to its content."""
    for kind in (SegmentationFolder, ADE20K, COCO, COCOFolder, YOLOFolder):
        if kind.is_root(Path(folder)):
            return kind.__name__
    return "ImageNet" if holds_imagenet(folder) else "ImageFolder"


def _is_model_name(value: str) -> bool:
    """Whether a value looks like a timm name, possibly with a tag (``resnet50.a1_in1k``), not a class, file or JSON."""
    return re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)?", value) is not None and not Path(value).is_file()


jsonargparse.set_loader(MODE, load_settings, exceptions=(yaml.YAMLError,))
