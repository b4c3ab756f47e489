"""The network laid out for inference on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.models.inference.layers import replacement
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba.ops.kernels import INFERENCE

Model = TypeVar("Model", bound=nn.Module)
#: Of networks that can be laid out.
DTYPES = (torch.float32, torch.bfloat16)


@torch.inference_mode(mode=False)  # whose tensors do not tell when they change
@torch.no_grad()
def optimize_for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy with norms folded, weights laid out for oneDNN and element-wise steps fused; same outputs up to rounding.

    The copy has the model's class and interface, but neither gradients nor the checkpoint's names: save the original.
    It takes pictures (B, in_chans, H, W) of ``dtype`` in any memory format; channels-last is fastest. Layers that have
    no fast form, such as other token mixers, stay as they are. ``torch.compile`` leaves the copy alone, as it would
    undo the layout; ``torch.export`` takes it. Large batches gain from ``keep_freed_memory``.

    Where oneDNN or the compiled kernels cannot be used, or the model's ``scan_backend`` is the reference, the copy is
    that of ``fuse_norms``, and a warning says why.

    Args:
        model: A MobileMamba on the CPU, or any module built of this package's layers.
        dtype: float32 or bfloat16, of weights and activations; the scan accumulates in float32 either way.

    Raises:
        ConfigError: If the model is on another device, or for another dtype.
    """
    if elsewhere := {p.device.type for p in model.parameters()} - {"cpu"}:
        raise ConfigError(f"optimize_for_inference: the model is on {elsewhere.pop()}; move it to the cpu first")
    if dtype not in DTYPES:
        raise ConfigError(f"optimize_for_inference: dtype={dtype}; expected torch.float32 or torch.bfloat16")
    optimized = fuse_norms(model).requires_grad_(requires_grad=False)
    if reason := _why_not(model, dtype):
        warnings.warn(f"optimize_for_inference: norms are folded, and no more: {reason}", stacklevel=4)
        return optimized.to(dtype)
    for layer in optimized.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # not the scan's parameters, which the kernel takes in float32
            layer.to(dtype)
    _replace_children(optimized)
    cls: Any = type(model)
    optimized.__class__ = _optimized(getattr(cls, "optimized_from", cls))
    return optimized.to(dtype)


def for_inference(
    network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, str]:
    """A copy of the network in the form that is fastest on a device.

    Args:
        network: On the CPU or on the device.
        device: Where it is to run.
        dtype: Of its weights and pictures.

    Returns:
        The copy, on the device; and what was done to it in words, and why no more.
    """
    if isinstance(network, RuntimeNetwork):
        return network, network.how
    how = "norms folded"
    if device.type == "cpu" and any(isinstance(module, MobileMamba) for module in network.modules()):
        reason = _why_not(network, dtype) if dtype in DTYPES else f"it is to run in {dtype}"
        if reason is None:
            return optimize_for_inference(network, dtype), "optimized for inference"
        how = f"norms folded, not optimized for inference: {reason}"
    return fuse_norms(network).to(device, dtype).to(memory_format=torch.channels_last), how


def _why_not(model: nn.Module, dtype: torch.dtype) -> str | None:
    """The reason why a network cannot be laid out, or None."""
    if any(getattr(layer, "backend", None) == "reference" for layer in model.modules()):
        return "scan_backend='reference' is for no kernel at all"
    for table in INFERENCE:
        for reason in table.explain("auto", torch.device("cpu"), dtype).refused.values():
            return reason
    return None


@cache
def _optimized(cls: Any) -> Any:
    """The class of a class's optimized copies, which ``torch.compile`` leaves alone."""
    forward: Callable[..., Any] = torch.compiler.disable(cls.forward)

    def reduce(self: nn.Module, _: Any) -> tuple[Any, ...]:
        """By the original class: this one has no name to be found by."""
        return _blank, (cls,), self.__dict__

    return type(cls.__name__, (cls,), {"forward": forward, "__reduce_ex__": reduce, "optimized_from": cls})


def _blank(cls: Any) -> nn.Module:
    return nn.Module.__new__(_optimized(cls))


def _replace_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fast = replacement(child)
        if fast is None:
            _replace_children(child)
        else:
            setattr(module, name, fast)
