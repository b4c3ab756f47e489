"""How many pictures and steps a trainer takes from its loaders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

from torch.utils.data import DistributedSampler

from mobilemamba.errors import ConfigError


def pictures_used(loaders: Any, batches: float | Sequence[float], devices: int) -> int | None:
    """Counts the pictures in the first batches of a loader, over all processes.

    Args:
        loaders: A torch DataLoader, or several in a sequence or a mapping.
        batches: Number of batches that each process takes from each loader; ``inf`` for a loader without an end.
        devices: Number of processes.

    Returns:
        The sum over the loaders, without pictures repeated to give all processes equal shares; None if it is unknown.
    """
    if isinstance(loaders, Mapping | list | tuple):
        each = list(loaders.values()) if isinstance(loaders, Mapping) else list(loaders)
        counts = [batches] * len(each) if isinstance(batches, int | float) else batches
        used = [pictures_used(loader, count, devices) for loader, count in zip(each, counts, strict=True)]
        return None if None in used else sum(count for count in used if count is not None)
    taken = batches if isinstance(batches, int | float) else sum(batches)
    of_batches = getattr(loaders, "batch_sampler", None)
    batch_size = getattr(loaders, "batch_size", None) or getattr(of_batches, "batch_size", None)
    if batch_size is None:
        return None
    sampler = getattr(of_batches, "sampler", None)
    parts: list[Any] = [sampler, getattr(loaders, "dataset", None)]
    sizes = [len(part) for part in parts if hasattr(part, "__len__")]
    used_here = min([taken * batch_size, *sizes[:1]]) * devices
    whole = len(cast(Sized, sampler.dataset)) if isinstance(sampler, DistributedSampler) else math.inf
    return None if math.isinf(used_here) else int(min(used_here, whole))


def pictures_evaluated(trainer: Any, split: str) -> int | None:
    """Returns :func:`pictures_used` of an evaluation, ``"val"`` or ``"test"``."""
    loaders, batches = (getattr(trainer, name) for name in (f"{split}_dataloaders", f"num_{split}_batches"))
    return pictures_used(loaders, batches, trainer.world_size)


def pictures_a_step(trainer: Any) -> int:
    """Returns the number of pictures in the first optimiser step, over all devices and accumulated batches.

    Raises:
        ConfigError: If the training loader has no known batch size.
    """
    loader, batches = trainer.train_dataloader, min(trainer.accumulate_grad_batches, trainer.num_training_batches)
    pictures = pictures_used(loader, batches, trainer.world_size)
    if pictures is None:
        raise ConfigError(
            f"the training loader ({type(loader).__name__}) has no batch_size, which the learning rate is scaled "
            "by; use a torch DataLoader with batch_size or with a batch sampler that has one"
        )
    return pictures


def steps_an_epoch(trainer: Any) -> int | None:
    """Returns the optimiser steps of an epoch; None if its loader has no length."""
    batches = trainer.num_training_batches
    return None if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
