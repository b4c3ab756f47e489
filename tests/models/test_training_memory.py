"""What a training step keeps for its backward pass on a GPU, counted by tensors without data."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.ops import jit, wavelet
from mobilemamba.ops.backends import forget_choices
from tests.pretended import needs_no_driver

BATCH = 2

pytestmark = needs_no_driver


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one: for autocast, and for Triton to be chosen."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(jit, "_why_no_driver", lambda: None)
    monkeypatch.setattr(wavelet, "_is_haar", lambda filters: True)  # which tensors without data cannot say
    forget_choices()


def kept_bytes(network: nn.Module, size: int) -> Counter[torch.dtype]:
    """Of all storages that autograd keeps in a forward pass in bfloat16 besides the network's own, by dtype."""
    with FakeTensorMode():
        own = {
            name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda", requires_grad=x.requires_grad)
            for name, x in (*network.named_parameters(), *network.named_buffers())
        }
        pictures = torch.empty(BATCH, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
        kept: dict[int, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage()._cdata] = x
            return x

        with saved_tensors_hooks(keep, lambda x: x), torch.autocast("cuda", torch.bfloat16):
            output = torch.func.functional_call(network, own, pictures)
        assert output.device.type == "cuda"
        of_network = {x.untyped_storage()._cdata for x in own.values()}
        found = Counter[torch.dtype]()
        for key, x in kept.items():
            found[x.dtype] += 0 if key in of_network else x.untyped_storage().nbytes()
        return found


def test_it_grows_with_the_pixels_and_not_faster() -> None:
    """Besides weights in bfloat16, the same bytes for each pixel up to 1024 px, and fewer than other backends keep."""
    network = timm.create_model("mobilemamba_s6", depths=(1, 1, 1), num_classes=10).train()
    network = network.to(memory_format=torch.channels_last)
    kept = {size: kept_bytes(network, size).total() for size in (256, 512, 1024)}
    first, second = (
        (kept[large] - kept[small]) / (BATCH * (large**2 - small**2)) for small, large in ((256, 512), (512, 1024))
    )
    assert second == pytest.approx(first, rel=1e-3)
    assert 100 < first < 230
    use_scan_backend(network, "chunked")  # which has step sizes of all channels
    assert kept_bytes(network, 1024).total() > 1.02 * kept[1024]


def test_maps_are_kept_in_half_precision() -> None:
    """Autocast computes LayerNorm and products with a parameter in float32, unless the network sees to it."""
    network = timm.create_model("mobilemamba_s6", depths=(1, 1, 1), num_classes=10).train()
    kept = kept_bytes(network, 256)
    assert kept.keys() <= {torch.bfloat16, torch.float32, torch.int64}
    assert kept[torch.float32] < 0.02 * kept[torch.bfloat16]
