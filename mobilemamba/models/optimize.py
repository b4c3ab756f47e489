"""The network laid out for inference on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.layers.inference import replacement
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.ops.native import library

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def optimize_for_inference(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """A copy with norms folded, weights laid out for oneDNN and element-wise steps fused; same outputs up to rounding.

    The copy has the model's class and interface, but neither gradients nor the checkpoint's names: save the original.
    It takes pictures (B, in_chans, H, W) of ``dtype`` in any memory format; channels-last is fastest. Layers that have
    no fast form, such as other token mixers, stay as they are. ``torch.compile`` leaves the copy alone, as it would
    undo the layout; ``torch.export`` takes it. Large batches gain from ``keep_freed_memory``.

    Args:
        model: A MobileMamba on the CPU, or any module built of this package's layers.
        dtype: float32 or bfloat16, of weights and activations; the scan accumulates in float32 either way.

    Raises:
        ConfigError: If the model is on another device, or for another dtype.
        BackendUnavailableError: If PyTorch lacks oneDNN, or the compiled kernels are missing. ``fuse_norms`` needs
            neither.
    """
    if elsewhere := {p.device.type for p in model.parameters()} - {"cpu"}:
        raise ConfigError(f"optimize_for_inference: the model is on {elsewhere.pop()}; move it to the cpu first")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"optimize_for_inference: dtype={dtype}; expected torch.float32 or torch.bfloat16")
    if not torch.backends.mkldnn.is_available():
        raise BackendUnavailableError("optimize_for_inference: this PyTorch has no oneDNN; use fuse_norms instead")
    if reason := library.why_not():
        raise BackendUnavailableError(
            f"optimize_for_inference: the compiled kernels are missing ({reason}); use fuse_norms instead"
        )
    optimized = fuse_norms(model).requires_grad_(requires_grad=False)
    for layer in optimized.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # not the scan's parameters, which the kernel takes in float32
            layer.to(dtype)
    _replace_children(optimized)
    cls = type(optimized)
    optimized.__class__ = type(cls.__name__, (cls,), {"forward": torch.compiler.disable(cls.forward)})
    return optimized.to(dtype)


def _replace_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        fast = replacement(child)
        if fast is None:
            _replace_children(child)
        else:
            setattr(module, name, fast)
