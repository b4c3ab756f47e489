"""Learning rate schedules: linear warm-up, then cosine decay over the whole training or over its second half."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch.optim.lr_scheduler import LambdaLR

from mobilemamba.errors import ConfigError
from mobilemamba.training.loaders import steps_an_epoch

Schedule = Literal["cosine", "half_cosine", "half_cosine_by_epoch"]


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, min_ratio: float = 0.01, warmup_ratio: float = 0.001
) -> float:
    """Returns the learning rate of one step as a fraction of its peak.

    The cosine starts at step 0, not at the end of the warm-up, so the rate falls a little where they meet (from
    3.000e-3 to 2.967e-3 in the released ImageNet logs, all of whose values this function reproduces).

    Args:
        step: Number of optimiser steps already taken; after ``total_steps`` the rate stays at its minimum.
        total_steps: Optimiser steps of the whole training, warm-up included.
        warmup_steps: Optimiser steps of the linear warm-up; 0 for none.
        min_ratio: Value at the end of the cosine.
        warmup_ratio: Value at the start of the warm-up.
    """
    if step < warmup_steps:
        return warmup_ratio + (1 - warmup_ratio) * step / warmup_steps
    progress = min(step / total_steps, 1.0)
    return min_ratio + (1 - min_ratio) / 2 * (1 + math.cos(math.pi * progress))


def warmup_half_cosine(
    step: int,
    total_steps: int,
    warmup_steps: int,
    min_ratio: float = 0.0,
    warmup_ratio: float = 1e-5,
    steps_an_epoch: int = 1,
) -> float:
    """Returns the learning rate of one step as a fraction of its peak: constant in the first half, then a cosine.

    Reproduces the logs of the released trainings for segmentation, whose cosine is updated every step, and for
    detection, whose cosine is updated every epoch. The warm-up reaches the peak at its last step.

    Arguments are as in :func:`warmup_cosine`; ``steps_an_epoch`` are the steps between two updates of the cosine.
    """
    if step < warmup_steps:
        return warmup_ratio + (1 - warmup_ratio) * step / max(1, warmup_steps - 1)
    half = total_steps / 2
    progress = min(max(0.0, (step - step % steps_an_epoch - half) / half), 1.0)
    return min_ratio + (1 - min_ratio) / 2 * (1 + math.cos(math.pi * progress))


def rate_of(
    schedule: Schedule,
    trainer: Any,
    warmup_epochs: float,
    warmup_steps: int | None,
    min_ratio: float,
    warmup_ratio: float,
) -> Callable[[int], float]:
    """Returns a function from the step of a training to its learning rate as a fraction of the peak.

    Args:
        schedule: Name of the schedule.
        trainer: Lightning's trainer.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length of the warm-up in steps, instead of ``warmup_epochs``; None to use those.
        min_ratio: Value at the end of the cosine.
        warmup_ratio: Value at the start of the warm-up.

    Raises:
        ConfigError: In the cases of :func:`steps_of`; or if the schedule goes by epochs and their length is unknown.
    """
    shape = *steps_of(trainer, warmup_epochs, warmup_steps), min_ratio, warmup_ratio
    if schedule == "cosine":
        return lambda step: warmup_cosine(step, *shape)
    if schedule == "half_cosine":
        return lambda step: warmup_half_cosine(step, *shape)
    of_epoch = steps_an_epoch(trainer)
    if of_epoch is None:
        raise ConfigError(
            f"schedule={schedule}: the training loader has no length, so its epochs are of unknown steps; give "
            "model.schedule=half_cosine"
        )
    return lambda step: warmup_half_cosine(step, *shape, of_epoch)


def set_rates_of_now(schedule: LambdaLR) -> None:
    """Sets the optimiser's learning rates to those of the schedule's current step, replacing those of a checkpoint."""
    for group, peak, ratio in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = peak * ratio(schedule.last_epoch)


def steps_of(trainer: Any, warmup_epochs: float, warmup_steps: int | None) -> tuple[int, int]:
    """Returns the optimiser steps of a training and of its warm-up; warns if the warm-up is no shorter.

    Args:
        trainer: Lightning's trainer.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_steps: Length of the warm-up in steps, instead of ``warmup_epochs``; None to use those.

    Raises:
        ConfigError: If the training has no end for the cosine decay, or no epochs for the warm-up.
    """
    trainer.fit_loop.setup_data()  # Lightning does this only if it needs the length of an epoch itself
    total, of_epoch = trainer.estimated_stepping_batches, steps_an_epoch(trainer)
    if not 0 < total < math.inf:
        raise ConfigError(
            f"trainer.max_epochs={trainer.max_epochs}, trainer.max_steps={trainer.max_steps}: the learning rate's "
            "cosine needs a training with an end; set trainer.max_epochs"
        )
    name, given = ("warmup_steps", warmup_steps) if warmup_steps is not None else ("warmup_epochs", warmup_epochs)
    if warmup_steps is None and warmup_epochs:
        if of_epoch is None:
            raise ConfigError(
                f"warmup_epochs={warmup_epochs:g}: the training loader has no length, so its epochs are of unknown "
                "steps; give model.warmup_steps"
            )
        warmup_steps = round(warmup_epochs * of_epoch)
    warmup_steps = warmup_steps or 0
    if warmup_steps >= total and trainer.is_global_zero and not trainer.fast_dev_run:
        warnings.warn(
            f"{name}={given:g} ({warmup_steps} steps) is no shorter than the training ({total} steps), which so never "
            f"reaches lr; lower model.{name}",
            stacklevel=2,
        )
    return int(total), warmup_steps
