"""Forward-mode and ``torch.func`` derivatives: those that our operators lack are refused, as torch would give zero."""

from __future__ import annotations

from typing import Never

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mobilemamba.errors import ConfigError

_REMEDY = "use torch.autograd's first derivatives, or all of them within mobilemamba.ops.standard_operators()"


def transforming() -> bool:
    """Returns whether forward-mode or ``torch.func`` derivatives are being taken: only plain PyTorch supports those."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch
    return any(level.key() == functorch.TransformType.Grad for level in functorch.get_interpreter_stack())


def is_channels_last(x: Tensor) -> bool:
    """Returns whether maps (B, C, H, W) are channels-last in memory; False under ``vmap``, whose batches hide it."""
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(x):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def refuse_transforms(op: str) -> None:
    """Refuses derivatives that an operator about to be called does not have.

    Raises:
        ConfigError: If ``transforming()``.
    """
    if transforming():
        raise ConfigError(f"{op} has no derivatives in forward mode (jvp) and by torch.func (grad, hessian); {_REMEDY}")


def refuse_forward_mode(op: str) -> None:
    """Refuses forward-mode derivatives inside an operator, where tangents would be zero; cannot see other transforms.

    Raises:
        ConfigError: If forward-mode derivatives are being taken.
    """
    if forward_ad._current_level >= 0:
        raise ConfigError(f"{op} has no derivatives in forward mode (jvp, jacfwd, hessian); {_REMEDY}")


def refuse_second_derivative(op: str) -> Never:
    """Refuses to differentiate a gradient.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(f"{op} has no second derivatives; {_REMEDY}")
