"""Which kernels a network's layers run by."""

from __future__ import annotations

import torch
from torch import nn

from mobilemamba.layers.batch_norm import BatchNorm2d
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.ops.kernels import batch_norm_kernel, in_one_line, scan_kernel, wavelet_kernel


def describe_network(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """One line on the kernels that the network runs by, and why no faster ones; None if there are none for its layers.

    Args:
        network: Any module; the memory format of its weights counts.
        device: Where it runs.
        dtype: Of its feature maps.

    Raises:
        BackendUnavailableError: If a scan backend was chosen that cannot run there.
    """
    layers = list(network.modules())
    scans = {(m.scan_backend, m.d_state): None for m in layers if isinstance(m, SS2D)}
    wavelets = {m.is_haar: None for m in layers if isinstance(m, WaveletConv)}
    found = [scan_kernel(device, dtype, *scan) for scan in scans]
    found += [wavelet_kernel(device, dtype, haar) for haar in wavelets]
    if any(isinstance(m, BatchNorm2d) for m in layers):
        convs = [m.weight for m in layers if isinstance(m, nn.Conv2d)]
        last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convs)
        found.append(batch_norm_kernel(device, dtype, last))
    return in_one_line(found, device) if found else None
