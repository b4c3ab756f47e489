"""What a training step keeps for its backward pass on a GPU, counted by tensors without data."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.ops import jit
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
    forget_choices()


def kept_bytes(network: nn.Module, size: int) -> int:
    """Of all storages that autograd keeps in a forward pass in bfloat16 besides the network's own."""
    with FakeTensorMode():
        own = {
            name: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda", requires_grad=x.requires_grad)
            for name, x in (*network.named_parameters(), *network.named_buffers())
        }
        pictures = torch.empty(BATCH, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        with saved_tensors_hooks(keep, lambda x: x), torch.autocast("cuda", torch.bfloat16):
            output = torch.func.functional_call(network, own, pictures)
        assert output.device.type == "cuda"
        of_network = {x.untyped_storage()._cdata for x in own.values()}
        return sum(storage.nbytes() for key, storage in kept.items() if key not in of_network)


def test_it_grows_with_the_pixels_and_not_faster() -> None:
    """Besides weights in bfloat16, the same bytes for each pixel up to 1024 px, and fewer than other backends keep."""
    network = timm.create_model("mobilemamba_s6", depths=(1, 1, 1), num_classes=10).train()
    network = network.to(memory_format=torch.channels_last)
    kept = {size: kept_bytes(network, size) for size in (256, 512, 1024)}
    first, second = (
        (kept[large] - kept[small]) / (BATCH * (large**2 - small**2)) for small, large in ((256, 512), (512, 1024))
    )
    assert second == pytest.approx(first, rel=1e-3)
    assert 100 < first < 260
    use_scan_backend(network, "chunked")  # which has step sizes of all channels
    assert kept_bytes(network, 1024) > 1.02 * kept[1024]
