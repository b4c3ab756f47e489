"""A depthwise convolution in the wavelet domain, between the wavelet transform of a map and its inverse.

Shape letters: B batch, C channels, H and W sides, F filter length.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mobilemamba.ops.backends import Backends, needs_reference
from mobilemamba.ops.native import library
from mobilemamba.ops.wavelet import definition, native, triton
from mobilemamba.ops.wavelet.definition import HAAR

BACKENDS = Backends(
    "wavelet",
    definition.wavelet_conv,
    library.backend(native.forward, unavailable=native.unavailable),
    triton.BACKEND,
)


def wavelet_conv(
    x_BCHW: Tensor, weight: Tensor, dwt_filters: Tensor, idwt_filters: Tensor, backend: str = "auto"
) -> Tensor:
    """Applies the wavelet transform, a zero-padded depthwise convolution of the sub-bands, and the inverse transform.

    Args:
        x_BCHW: Maps of any size.
        weight: (4C, 1, k, k), k odd: one kernel for each of the four sub-bands of each channel.
        dwt_filters: (4C, 1, F, F), filters of the transform; see ``wavelet_filters``.
        idwt_filters: (4C, 1, F, F), filters of the inverse transform.
        backend: One of ``BACKENDS.names``.

    Returns:
        (B, C, H, W).

    Raises:
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    backend = "reference" if needs_reference(backend) else backend
    chosen = BACKENDS.choose(backend, x_BCHW.device, x_BCHW.dtype)
    if chosen.name != "reference" and not are_haar(dwt_filters, idwt_filters):
        chosen = BACKENDS.choose(backend, x_BCHW.device, x_BCHW.dtype, haar=False)
    return chosen.forward(x_BCHW, weight, dwt_filters, idwt_filters)


#: For filters on a device that the host would have to wait for: their version when their values were last read, and
#: whether they were Haar's.
_FOUND: MutableMapping[Tensor, tuple[int | None, bool]] = WeakTensorKeyDictionary()


@torch.compiler.assume_constant_result  # a compiled graph is for the filters as they were then
def are_haar(*filters: Tensor) -> bool:
    """Returns whether the filters' current values are Haar's, the only ones that the kernels know.

    On a CPU the values are read at every call; elsewhere only after autograd's version counter of them has changed.
    """
    if any(f.shape[-1] != 2 or torch._C._functorch.is_batchedtensor(f) for f in filters):  # vmap hides the values
        return False
    return all(map(_is_haar, filters))


def _is_haar(filters: Tensor) -> bool:
    version, was_haar = _FOUND.get(filters, (-1, False))
    now = None if filters.is_inference() else filters._version
    if version == now:
        return was_haar
    if torch._C._len_torch_dispatch_stack():  # a tracer hides the values
        return False
    if filters.is_meta:
        return True
    is_haar = _looks_haar(filters)
    if not filters.is_cpu:
        _FOUND[filters] = now, is_haar
    return is_haar


@torch.no_grad()
def _looks_haar(filters: Tensor) -> bool:
    haar = HAAR.unsqueeze(1).to(filters.device)
    # A checkpoint's filters may be rounded differently.
    return bool(((filters.float().unflatten(0, (-1, 4)) - haar).abs() <= 1e-6).all())
