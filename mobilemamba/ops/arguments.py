"""What every operator asks of its arguments by itself: traced and exported networks call operators and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check(op: str, layout: Mapping[str, str], tensors: Sequence[Tensor], **sizes: int) -> dict[str, int]:
    """Compares the tensors' shapes with each other; they must be of real numbers, and on one device.

    Args:
        op: The operator's name.
        layout: The tensors' names, and for each its dimensions' letters: one letter is one size.
        tensors: In the same order.
        sizes: Of letters, where they are known already.

    Returns:
        The size of each letter.

    Raises:
        ConfigError: At the first tensor that does not fit.
    """
    if len(tensors) != len(layout):
        raise ConfigError(f"{op}: {len(tensors)} tensors; expected {', '.join(layout)}")
    device = tensors[0].device
    for (name, letters), x in zip(layout.items(), tensors, strict=True):
        shape = x.shape
        if len(shape) != len(letters):
            raise ConfigError(f"{op}: {name} has shape {tuple(shape)}; it must be ({', '.join(letters)})")
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                expected = tuple(sizes.get(letter, size) for letter, size in zip(letters, shape, strict=True))
                raise ConfigError(
                    f"{op}: {name} has shape {tuple(shape)}; with the other arguments it must be {expected}"
                )
        if x.dtype not in _FLOATS:
            raise ConfigError(f"{op}: {name} is of {x.dtype}; expected real numbers, e.g. torch.float32")
        if x.device != device:
            raise ConfigError(f"{op}: {name} is on {x.device}, {next(iter(layout))} on {device}; move one to the other")
    return sizes


def check_kernel(op: str, size: int) -> None:
    """That a kernel has a middle.

    Raises:
        ConfigError: If not.
    """
    if size % 2 == 0:
        raise ConfigError(f"{op}: kernel size {size}; expected an odd one, e.g. 3")
