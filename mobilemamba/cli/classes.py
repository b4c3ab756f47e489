"""The classes that settings choose from, and the names of all their settings."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from mobilemamba.data import (
    ADE20K,
    COCO,
    COCOFolder,
    FashionMNISTSample,
    FashionObjects,
    FashionScenes,
    ImageFolder,
    ImageNet,
    SegmentationFolder,
    YOLOFolder,
)
from mobilemamba.sweep import Sweep
from mobilemamba.tasks import TASKS
from mobilemamba.tasks.settings import init_arguments

#: Setting -> classes of this package to choose from, the default first. Importing them makes their names known.
KINDS: dict[str, list[type]] = {
    "model": [*TASKS.values()],
    "data": [
        *(FashionMNISTSample, ImageFolder, ImageNet),
        *(FashionScenes, SegmentationFolder, ADE20K),
        *(FashionObjects, COCOFolder, YOLOFolder, COCO),
    ],
}

#: Defaults of the default task's arguments, whose own are the paper's, for 300 epochs of ImageNet in batches of 1024.
DEFAULTS = {"lr": 1e-3, "reference_batch_size": 64, "warmup_epochs": 0.5}


def class_named(name: str) -> type | None:
    """Returns the task or data set of this package with a name, or with a path that ends in it; None if none has."""
    named = (kind for kinds in KINDS.values() for kind in kinds if kind.__name__ == name.rpartition(".")[2])
    return next(named, None)


def class_settings() -> list[str]:
    """Lists the settings of sweeps, of this package's tasks and data sets, and of Lightning's callbacks and loggers."""
    kinds = [("sweep", Sweep), *((group, kind) for group, found in known_classes().items() for kind in found)]
    return [setting for group, kind in kinds for setting in _settings(kind, group)]


def known_classes() -> dict[str, list[type]]:
    """Returns setting -> classes to choose from."""
    bases: dict[str, type] = {"trainer.callbacks": Callback, "trainer.logger": Logger, "trainer.profiler": Profiler}
    return KINDS | {group: list(_below(base)) for group, base in bases.items()}


def _below(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _below(kind)


def _settings(kind: type, prefix: str) -> Iterator[str]:
    own = kind.__module__.startswith("mobilemamba.")
    parts = parts_of(kind) if own else {}
    for name in init_arguments(kind) if own else inspect.signature(kind).parameters:
        yield f"{prefix}.{name}"
        if name in parts:
            yield from _settings(parts[name], f"{prefix}.{name}")


def parts_of(kind: type) -> dict[str, type]:
    """Returns the arguments of a class that are configured by a dataclass: name -> dataclass."""
    parts: dict[str, type] = {}
    for name, hint in init_arguments(kind).items():
        for choice in (hint, *typing.get_args(hint)):
            if isinstance(choice, type) and dataclasses.is_dataclass(choice):
                parts[name] = choice
    return parts
