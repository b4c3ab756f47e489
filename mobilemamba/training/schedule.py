"""The learning rate over the steps of a training: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, min_ratio: float = 0.01, warmup_ratio: float = 0.001
) -> float:
    """The learning rate of one step as a fraction of its peak.

    The cosine counts from step 0, not from the end of the warm-up; so the rate falls a little where they meet (from
    3.000e-3 to 2.967e-3 in the released ImageNet logs, all of whose values this reproduces).

    Args:
        step: Number of optimiser steps already taken; after ``total_steps`` the rate stays at its minimum.
        total_steps: Optimiser steps of the whole training, warm-up included.
        warmup_steps: Optimiser steps of the linear warm-up; 0 for none.
        min_ratio: What the cosine ends at.
        warmup_ratio: What the warm-up starts from.
    """
    if step < warmup_steps:
        return warmup_ratio + (1 - warmup_ratio) * step / warmup_steps
    progress = min(step / total_steps, 1.0)
    return min_ratio + (1 - min_ratio) / 2 * (1 + math.cos(math.pi * progress))


def warmup_cosine_scheduler(
    optimizer: Optimizer, total_steps: int, warmup_steps: int, min_ratio: float = 0.01, warmup_ratio: float = 0.001
) -> LambdaLR:
    """A scheduler to be stepped after each optimiser step; the optimiser's own ``lr`` is the peak.

    See :func:`warmup_cosine` for the arguments.
    """
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_steps, min_ratio, warmup_ratio))
