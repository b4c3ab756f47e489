"""Checks of arguments inside the operators, as traced and exported networks call these without their wrappers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError

_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check(op: str, layout: Mapping[str, str], tensors: Sequence[Tensor], **sizes: int) -> dict[str, int]:
    """Checks that the tensors' shapes agree, that they hold real numbers and that they are on one device.

    Args:
        op: Name of the operator.
        layout: The tensors' names and the letters of their dimensions; a letter stands for one size throughout.
        tensors: The tensors, in the order of ``layout``.
        sizes: Sizes of letters that are already known.

    Returns:
        The size of each letter.

    Raises:
        ConfigError: At the first tensor that does not fit.
    """
    if len(tensors) != len(layout):
        raise ConfigError(f"{op}: {len(tensors)} tensors; expected {', '.join(layout)}")
    device = tensors[0].device
    for x in tensors:
        if x.device != device or x.dtype not in _FLOATS:
            _refuse(op, layout, tensors)
    shapes = tuple([x.shape for x in tensors])
    try:
        return _kept_sizes(op, tuple(layout.items()), shapes, tuple(sizes.items()))
    except TypeError:  # a compiler's symbolic sizes cannot be hashed
        return _sizes(op, tuple(layout.items()), shapes, tuple(sizes.items()))


def _sizes(
    op: str, layout: tuple[tuple[str, str], ...], shapes: tuple[torch.Size, ...], known: tuple[tuple[str, int], ...]
) -> dict[str, int]:
    sizes = dict(known)
    for (name, letters), shape in zip(layout, shapes, strict=True):
        if len(shape) != len(letters):
            raise ConfigError(f"{op}: {name} has shape {tuple(shape)}; it must be ({', '.join(letters)})")
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                expected = tuple(sizes.get(letter, size) for letter, size in zip(letters, shape, strict=True))
                raise ConfigError(
                    f"{op}: {name} has shape {tuple(shape)}; with the other arguments it must be {expected}"
                )
    return sizes


#: A network checks the same shapes again and again, and in a small one the time that takes is noticeable.
_kept_sizes = lru_cache(maxsize=4096)(_sizes)


def _refuse(op: str, layout: Mapping[str, str], tensors: Sequence[Tensor]) -> None:
    first, *_ = layout
    for name, x in zip(layout, tensors, strict=True):
        if x.dtype not in _FLOATS:
            raise ConfigError(f"{op}: {name} is of {x.dtype}; expected real numbers, e.g. torch.float32")
        if x.device != tensors[0].device:
            raise ConfigError(
                f"{op}: {name} is on {x.device}, {first} on {tensors[0].device}; move one to the other's device"
            )


def check_kernel(op: str, size: int) -> None:
    """Checks that a kernel's size is odd, so that it has a centre.

    Raises:
        ConfigError: If it is even.
    """
    if size % 2 == 0:
        raise ConfigError(f"{op}: kernel size {size}; expected an odd one, e.g. 3")
