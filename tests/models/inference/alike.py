"""What the tests of networks for inference share."""

import pytest
import torch
from torch import nn

from mobilemamba.models.inference.layers import InferenceMRFFI
from mobilemamba.ops.native import library

NEEDS_KERNELS = pytest.mark.skipif(
    library.why_not() is not None or not torch.backends.mkldnn.is_available(),
    reason=f"needs oneDNN and the compiled kernels ({library.why_not()})",
)


def assert_same_output(model: nn.Module, optimized: nn.Module, size: tuple[int, int] = (64, 96)) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        pictures = torch.randn(2, 3, *size).contiguous(memory_format=memory_format)
        with torch.inference_mode():
            expected, logits = model(pictures), optimized(pictures)
        assert (logits - expected).norm() < 1e-5 * expected.norm()


def fast_mixers(model: nn.Module) -> int:
    return sum(isinstance(module, InferenceMRFFI) for module in model.modules())
