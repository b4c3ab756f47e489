"""What the kernels write to follows their inputs, not torch's defaults."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import mobilemamba.ops.batch_norm  # noqa: F401  registers its operators
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.native import library
from mobilemamba.ops.scan_norm_gate import scan_norm_gate
from mobilemamba.ops.selective_scan import selective_scan_2d
from tests.ops.test_haar_conv import haar_conv

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=f"no compiled kernels: {library.why_not()}")


def _batch_norm(x: Tensor) -> list[Tensor]:
    maps, ones = x.permute(0, 3, 1, 2), x.new_ones(8).requires_grad_()
    y, mean, variance, _ = torch.ops.mobilemamba.batch_norm(maps, ones, x.new_zeros(8), 1e-5, True)
    return [y, mean, variance, *torch.autograd.grad(y, [ones], maps)]


def _haar_conv(x: Tensor) -> list[Tensor]:
    weight = x.new_ones(32, 1, 3, 3).requires_grad_()
    y = haar_conv(x, weight)
    return [y, *torch.autograd.grad(y, [weight], x)]


def _scan(x: Tensor) -> list[Tensor]:
    u, per_channel = x.flatten(1, 2).requires_grad_(), x.new_ones(2, 8)
    dt = u.detach()[:, None].expand(-1, 2, -1, -1)
    y = selective_scan_2d(u, dt, -per_channel[..., None], dt[..., :1], dt[..., 1:2], per_channel, per_channel, (5, 6))
    return [y, *torch.autograd.grad(y, [u], u.detach())]


def _inference(x: Tensor) -> list[Tensor]:
    per_channel, ones = x.new_ones(2, 8), x.new_ones(8)
    weights = (x.new_ones(2, 1, 8), -per_channel[..., None], per_channel, per_channel, ones, ones, 1e-5)
    y = scan_norm_gate(x, x[..., :6], x, *weights)
    return [y, mix_channels(x, y[..., :4].contiguous(), x.new_ones(4, 3, 3, 4), [])]


@contextmanager
def other_defaults() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("run", [_batch_norm, _haar_conv, _scan, _inference])
def test_default_dtype_and_device_do_not_matter(run: Callable[[Tensor], list[Tensor]]) -> None:
    x = torch.randn(2, 5, 6, 8)
    expected = run(x.clone())
    with other_defaults():
        found = run(x.clone())
    for ours, same in zip(found, expected, strict=True):
        assert ours.dtype == same.dtype
        assert torch.equal(ours, same)
