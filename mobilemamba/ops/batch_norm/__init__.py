"""Batch normalisation in training, optionally followed by a ReLU.

Shape letters: B batch, C channels, H and W sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.backends import Backends, needs_reference
from mobilemamba.ops.batch_norm import native
from mobilemamba.ops.batch_norm.native import Pair
from mobilemamba.ops.native import library
from mobilemamba.ops.transforms import is_channels_last


def definition(x_BCHW: Tensor, running: Pair, affine: Pair, momentum: float, eps: float, relu: bool) -> Tensor:
    """Normalises with PyTorch's own batch norm."""
    y = F.batch_norm(x_BCHW, *running, *affine, True, momentum, eps)
    return F.relu(y) if relu else y


BACKENDS = Backends("batch norm", definition, library.backend(native.forward, unavailable=native.unavailable))


def batch_norm(
    x_BCHW: Tensor, running: Pair, affine: Pair, momentum: float, eps: float, relu: bool, backend: str = "auto"
) -> Tensor:
    """Normalises with the batch's own statistics, and updates the running ones.

    Args:
        x_BCHW: Maps with at least two pixels per channel.
        running: Running mean and variance (C,), updated in place.
        affine: Weight and bias (C,).
        momentum: The batch's share in the updated running statistics.
        eps: Added to the variance.
        relu: Whether to apply a ReLU to the result.
        backend: One of ``BACKENDS.names``. While a graph is compiled, ``auto`` is PyTorch's own batch norm.

    Returns:
        (B, C, H, W), of x's dtype.

    Raises:
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    weight = affine[0]
    one_pixel = x_BCHW.numel() <= len(weight)  # PyTorch's own error message is good
    of_pytorch = torch.compiler.is_compiling() or weight.dtype != torch.float32
    if one_pixel or needs_reference(backend) or (backend == "auto" and of_pytorch):
        backend = "reference"
    chosen = BACKENDS.choose(backend, x_BCHW.device, x_BCHW.dtype, channels_last=is_channels_last(x_BCHW))
    return chosen.forward(x_BCHW, running, affine, momentum, eps, relu)
