"""Where the weights come from, and whether they are for these pictures: mistakes that would give a wrong number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError
from mobilemamba.models import read_card


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
        if not _elsewhere(path) and not Path(path).exists():
            raise ConfigError(f"ckpt_path={path}: no such file; give one of a run's folder checkpoints")
    elif subcommand != "fit" and "weights" in model and model["weights"] is None:
        raise ConfigError(f"{subcommand} has no weights, only a network that is not trained; give --weights FILE")


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
    return "://" in str(path) or str(path).startswith("registry")
