"""What the optimiser is given: parameter groups and the learning rate for the batch size at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import param_groups_weight_decay
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into those that decay and those that do not.

    Vectors (norms, biases, skip terms) do not decay, nor does what the model names in ``no_weight_decay()``: in
    MobileMamba the matrices that are biases, scales or logarithms in substance. Frozen parameters are in no group.

    Args:
        model: The network itself, not a wrapper: the names of ``no_weight_decay()`` are relative to it.
        weight_decay: For the weights that decay.

    Returns:
        One or two groups for a torch optimiser; each trainable parameter is in exactly one.
    """
    names = getattr(model, "no_weight_decay", None)
    exempt: Iterable[str] = names() if callable(names) else ()
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=set(exempt))


def scale_lr(lr: float, batch_size: int, reference_batch_size: int) -> float:
    """The learning rate for a batch size, in proportion to the one that ``lr`` was chosen for.

    Args:
        lr: Peak learning rate at ``reference_batch_size``; the release's is 3e-3 at 1024 pictures a step.
        batch_size: Pictures an optimiser step sees, over all devices and accumulated batches.
        reference_batch_size: See ``lr``.
    """
    return lr * batch_size / reference_batch_size
