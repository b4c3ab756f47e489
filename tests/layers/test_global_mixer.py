"""What every token mixer in Mamba's place must do; one by one they are compared with their equations elsewhere."""

import pytest
import torch
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.layers.global_mixer import GLOBAL_MIXERS

pytestmark = pytest.mark.kernels

LEARNED = [name for name in GLOBAL_MIXERS if name != "identity"]
SIZES = [(1, 1), (1, 7), (5, 3), (7, 7), (14, 14), (17, 17)]


def build(name: str, dim: int = 32) -> nn.Module:
    """A mixer whose every part matters."""
    mixer = GLOBAL_MIXERS[name](dim)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize("dim", [16, 160, 272])
@pytest.mark.parametrize("name", GLOBAL_MIXERS)
def test_number_of_parameters(name: str, dim: int) -> None:
    C = dim
    expected = {
        # Projections with their norms; rates; the map W, b and its norm; the norm after; shares.
        "ttt": 4 * C**2 + 8 * C + C**2 // 16 + C // 16 + 16 * C + C + 2 * C + 2 * C + 16,
        # Projections with their norms; depthwise convolution; gates; the norm after, skip.
        "mlstm": 5 * C**2 + 10 * C + 10 * C + C**2 // 4 + C // 4 + 3 * C,
        # Projections with their norms; mix and its low rank; low rank of the decay; decay, bonus; the norm after.
        "rwkv6": 5 * C**2 + 10 * C + 6 * C + 160 * C + 64 * C + 4 * C + 2 * C,
        "attention": 4 * C**2 + 8 * C,
        "identity": 0,
    }[name]
    assert sum(p.numel() for p in GLOBAL_MIXERS[name](dim).parameters()) == expected


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_any_size_and_memory_format(name: str, size: tuple[int, int]) -> None:
    mixer, x = build(name).eval(), torch.randn(2, 32, *size)
    with torch.no_grad():
        plain, last = mixer(x), mixer(x.to(memory_format=torch.channels_last))
        alone = torch.cat([mixer(picture[None]) for picture in x])
    assert plain.shape == x.shape
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_every_place_sees_every_place(name: str) -> None:
    mixer, x = build(name).double().eval(), torch.randn(1, 32, 5, 6, dtype=torch.float64, requires_grad=True)
    y = mixer(x)
    for place in (0, 13, 29):
        (gradient,) = torch.autograd.grad(y.flatten(2)[..., place].square().sum(), x, retain_graph=True)
        assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", LEARNED)
def test_a_fresh_mixer_trains_every_parameter(name: str) -> None:
    mixer = GLOBAL_MIXERS[name](32)
    y = mixer(torch.randn(2, 32, 5, 6))
    assert 0.1 < y.std() < 10
    (y * torch.randn_like(y)).sum().backward()
    assert not [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", LEARNED)
def test_single_and_half_precision_agree_with_double(name: str) -> None:
    mixer, x, weights = build(name), torch.randn(2, 32, 14, 14), torch.randn(2, 32, 14, 14)

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Output and input gradient with batch statistics; half precision by autocast."""
        own = torch.float64 if dtype == torch.float64 else torch.float32
        leaf = x.detach().clone().to(own).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = mixer.to(own)(leaf)
            (y * weights).sum().backward()
        assert leaf.grad is not None
        return y.double(), leaf.grad.double()

    expected = run(torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        for ours, theirs in zip(run(dtype), expected, strict=True):
            assert ours.isfinite().all()
            assert (ours - theirs).norm() < tolerance * theirs.norm(), dtype


@pytest.mark.parametrize("name", LEARNED)
def test_an_export_holds_torch_s_operators_alone(name: str) -> None:
    mixer, x = build(name).eval(), torch.randn(1, 32, 5, 5)
    program = torch.export.export(mixer, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.matmul.default" in targets or "aten.scaled_dot_product_attention.default" in targets
    assert not [target for target in targets if target.startswith("mobilemamba") or "autocast" in target]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), mixer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_channels_that_are_no_heads_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"40 channels: heads of 16 need a multiple of 16, e\.g\. 32"):
        GLOBAL_MIXERS[name](40)
