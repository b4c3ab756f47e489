"""MK-DeConv with one or several kernels."""

import pytest
import torch

from mobilemamba.layers.local_conv import MultiKernelConv

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize(
    ("dim", "kernels", "dims"),
    [(32, (7,), [32]), (33, (3, 5), [17, 16]), (32, (3, 5, 7), [11, 11, 10]), (3, (3, 5, 7), [1, 1, 1])],
    ids=str,
)
def test_each_kernel_works_on_its_share(dim: int, kernels: tuple[int, ...], dims: list[int]) -> None:
    conv = MultiKernelConv(dim, kernels).eval()
    assert conv.dims == dims
    assert [part[0].conv.kernel_size for part in conv.parts] == [(k, k) for k in kernels]
    assert all(part[0].conv.groups == d for part, d in zip(conv.parts, dims, strict=True))
    # 2 norms, a k x k and a 1 x 1 kernel a channel
    assert sum(p.numel() for p in conv.parameters()) == sum(
        d * (k * k + 1 + 4) for d, k in zip(dims, kernels, strict=True)
    )
    x = torch.randn(2, dim, 9, 11)
    with torch.no_grad():
        expected = torch.cat([part(xs) for part, xs in zip(conv.parts, x.split(dims, 1), strict=True)], 1)
        torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(("kernel", "dim"), [(3, 0), (5, 1), (7, 2)])
def test_receptive_field(kernel: int, dim: int) -> None:
    conv = MultiKernelConv(3, (3, 5, 7)).eval()

    def seen(bias: float) -> torch.Tensor:
        for norm in (m for m in conv.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.bias.data.fill_(bias)
        x = torch.zeros(1, 3, 11, 11, requires_grad=True)
        (gradient,) = torch.autograd.grad(conv(x)[0, dim, 5, 5], x)
        return gradient[0] != 0

    reach = kernel // 2
    window = torch.zeros(3, 11, 11, dtype=torch.bool)
    window[dim, 5 - reach : 6 + reach, 5 - reach : 6 + reach] = True
    assert torch.equal(seen(5.0), window)  # the ReLU is open
    assert not seen(-5.0).any()
