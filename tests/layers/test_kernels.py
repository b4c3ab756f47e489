"""Which kernels a network is said to run by."""

from typing import Any

import pytest
import torch
from torch import nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.kernels import describe_network, use_scan_backend
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv
from tests.ops.scans import needs_native

pytestmark = pytest.mark.kernels

CPU = torch.device("cpu")


def test_a_network_without_our_layers_has_none() -> None:
    assert describe_network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), CPU) is None


@needs_native
@pytest.mark.parametrize(
    ("scan", "wavelet", "expected"),
    [
        ({}, "db1", "scan native, batch norm native, wavelet native, 1 thread"),
        (
            {"backend": "reference"},
            "db1",
            "scan reference (chosen), wavelet reference (chosen), batch norm reference (chosen), 1 thread",
        ),
        (
            {"d_state": 2},
            "db2",
            (
                "scan native, wavelet PyTorch, batch norm native, 1 thread; "
                "no native wavelet: its kernel is for Haar's wavelet alone"
            ),
        ),
    ],
    ids=str,
)
def test_each_kind_of_layer(scan: dict[str, Any], wavelet: str, expected: str) -> None:
    backend = scan.pop("backend", "auto")
    layers = nn.Sequential(SS2D(4, **scan), WaveletConv(4, 3, wavelet)).to(memory_format=torch.channels_last)
    use_scan_backend(layers, backend)
    line = describe_network(layers, CPU)
    assert line is not None
    assert sorted(line.removeprefix("kernels: ").split(", ")) == sorted(expected.split(", "))


@needs_native
def test_the_memory_format_of_the_weights_counts() -> None:
    layers = nn.Sequential(ConvNorm(3, 4, 3), ConvNorm(4, 4))  # the weights of the second lie alike in both
    assert "(the maps are not channels-last)" in (describe_network(layers, CPU) or "")
