"""What a batch reads and writes in inference on a GPU, counted by tensors without data."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilemamba.models import fuse_norms
from mobilemamba.models.inference import lay_out, layers, packed
from mobilemamba.ops.backends import Backend, Backends
from mobilemamba.ops.depthwise.native import depthwise_conv
from mobilemamba.ops.mix_channels.native import mix_channels
from mobilemamba.ops.scan_norm_gate.native import scan_norm_gate

#: What moves no numbers.
_VIEWS = {
    *("view", "_unsafe_view", "alias", "detach", "as_strided_", "expand", "permute", "transpose", "t"),
    *("slice", "select", "split", "split_with_sizes", "unsqueeze"),
}


class Traffic(TorchDispatchMode):
    """Counts operators, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] not in _VIEWS:
            self.operators += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def traffic(network: nn.Module, size: int) -> Traffic:
    network = network.half().to("meta").to(memory_format=torch.channels_last)
    pictures = torch.empty(256, 3, size, size, dtype=torch.half, device="meta").to(memory_format=torch.channels_last)
    with torch.no_grad():
        network(pictures)  # which lays weights out
        with Traffic() as found:
            network(pictures)
    return found


@pytest.mark.parametrize(
    ("ours", "size", "peer"),
    [("s6", 224, "m5"), ("t4", 192, "m4"), ("t2", 192, "m2")],
)
def test_it_moves_less_than_its_peer_in_half_as_many_operators(
    ours: str, size: int, peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the peer moves without the biases, which cuDNN adds in passes of their own."""
    for module, operator in ((layers, scan_norm_gate), (layers, mix_channels), (packed, depthwise_conv)):
        kernels = Backends(f"{operator} on a GPU", operator, Backend("triton", "", operator))
        monkeypatch.setattr(module, operator.name().partition("::")[2], kernels)
    network = lay_out(timm.create_model(f"mobilemamba_{ours}").eval(), torch.device("cuda"), torch.half)
    found = traffic(network, size)
    of_peer = traffic(fuse_norms(timm.create_model(f"efficientvit_{peer}").eval()), 224)
    assert found.bytes < 0.7 * of_peer.bytes
    assert found.operators < 0.5 * of_peer.operators
