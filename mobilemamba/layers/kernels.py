"""Chooses the kernels of a network's layers, and says which ones run."""

from __future__ import annotations

import torch
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.batch_norm import BatchNorm2d
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.ops import batch_norm, selective_scan, wavelet
from mobilemamba.ops.kernels import summarize


def use_scan_backend(network: nn.Module, backend: str) -> None:
    """Sets the backend of a network's scans; ``reference`` also keeps its other layers from using any kernel.

    Raises:
        ConfigError: If there is no such backend.
    """
    if backend not in selective_scan.BACKENDS.names:
        names = ", ".join(selective_scan.BACKENDS.names)
        raise ConfigError(f"unknown scan_backend {backend!r}; expected one of {names}")
    for layer in network.modules():
        if isinstance(layer, SS2D) or (backend == "reference" and isinstance(layer, WaveletConv | BatchNorm2d)):
            layer.backend = backend


def describe_network(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Describes in one line the kernels that a network uses, and why no faster ones; None if none apply to its layers.

    Args:
        network: Any module; the memory format of its weights matters.
        device: Device that it runs on.
        dtype: Dtype of its feature maps.

    Raises:
        BackendUnavailableError: If a scan backend was chosen that cannot run there.
    """
    layers = list(network.modules())
    convs = [m.weight for m in layers if isinstance(m, nn.Conv2d)]
    last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convs)
    kernels = []
    for layer in layers:
        if isinstance(layer, SS2D):
            kernels.append(selective_scan.BACKENDS.explain(layer.backend, device, dtype, d_state=layer.d_state))
        elif isinstance(layer, WaveletConv):
            kernels.append(wavelet.BACKENDS.explain(layer.backend, device, dtype, haar=layer.is_haar))
        elif isinstance(layer, BatchNorm2d):
            kernels.append(batch_norm.BACKENDS.explain(layer.backend, device, dtype, channels_last=last))
    different = [kernel for i, kernel in enumerate(kernels) if kernel not in kernels[:i]]
    return summarize(different, device) if different else None
