"""The wavelet branch and its sum with SS2D."""

import pytest
import torch
from torch import nn

from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv, WaveletMamba
from tests.pretended import CARD, PretendedCard, needs_no_driver

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_number_of_parameters(kernel_size: int) -> None:
    conv = WaveletConv(10, kernel_size)
    trained, frozen = (sum(p.numel() for p in conv.parameters() if p.requires_grad == g) for g in (True, False))
    assert (trained, frozen) == (4 * 10 * kernel_size**2 + 4 * 10, 32 * 10)


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1), (2, 3)], ids=str)
def test_an_identity_convolution_gives_the_input_back(size: tuple[int, int], wavelet: str) -> None:
    conv, x = WaveletConv(4, 3, wavelet), torch.randn(2, 4, *size)
    nn.init.dirac_(conv.conv.weight, groups=16)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), 0.1 * x, rtol=1e-4, atol=1e-6)  # 0.1: the scale's start


@pytest.mark.parametrize("size", [(6, 8), (7, 5)], ids=str)
def test_memory_format_is_kept(size: tuple[int, int]) -> None:
    conv, x = WaveletConv(4, 3), torch.randn(2, 4, *size)
    with torch.no_grad():
        plain, last = conv(x), conv(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-6)


def test_sum_of_both_branches() -> None:
    ss2d, conv = SS2D(16).eval(), WaveletConv(16, 5)
    both, x = WaveletMamba(ss2d, conv, 16), torch.randn(2, 16, 5, 7)
    assert (both.scale == 1).all()
    with torch.no_grad():
        both.scale.fill_(3)
        torch.testing.assert_close(both(x), 3 * ss2d(x) + conv(x))


def test_filters_are_frozen_and_saved() -> None:
    conv = WaveletConv(2, 3)
    assert not conv.dwt_filters.requires_grad
    assert not conv.idwt_filters.requires_grad
    assert {"dwt_filters", "idwt_filters"} < conv.state_dict().keys()
    assert conv.dwt_filters.shape == (8, 1, 2, 2)


@pytest.mark.parametrize("wavelet", ["db1", "db2"])
def test_the_fast_path_computes_what_the_plain_one_does(wavelet: str) -> None:
    conv, x = WaveletConv(20, 3, wavelet), torch.randn(2, 20, 7, 6)
    with torch.no_grad():
        conv.scale.normal_()
        torch.testing.assert_close(conv(x), conv.double()(x.double()).float(), rtol=1e-4, atol=1e-5)


def test_filters_that_a_checkpoint_holds_are_used_whatever_they_are() -> None:
    conv, x = WaveletConv(4, 3), torch.randn(1, 4, 6, 6)
    state = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    with torch.no_grad():
        expected = conv(x)
        conv.load_state_dict(state)
        assert conv.is_haar
        conv.load_state_dict({**state, "idwt_filters": 2 * state["idwt_filters"]})
        assert not conv.is_haar
        torch.testing.assert_close(conv(x), 2 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [lambda f: f.mul_(2), lambda f: f.data.mul_(2)], ids=["in place", "past autograd"])
def test_filters_that_change_are_used_as_they_are(change) -> None:
    conv, x = WaveletConv(4, 3), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = conv(x)
        change(conv.idwt_filters)
        torch.testing.assert_close(conv(x), 2 * expected, rtol=1e-4, atol=1e-6)
        conv.idwt_filters.div_(2)
        torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(("wavelet", "is_haar"), [("haar", True), ("db1", True), ("db2", False)])
def test_haar_is_known_by_its_filters(wavelet: str, is_haar: bool) -> None:
    assert WaveletConv(4, 3, wavelet).is_haar == is_haar
    assert WaveletConv(4, 3, wavelet).to("meta").is_haar == is_haar


@needs_no_driver
def test_what_is_known_of_filters_on_a_gpu_no_mode_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that notes which operators run; the context of the card is one itself."""
    with PretendedCard() as card, monkeypatch.context() as without_modes:
        conv = WaveletConv(4, 3).to(CARD)
        assert not conv.is_haar
        without_modes.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
        assert conv.is_haar
        without_modes.undo()
        waits = card.waits.total()
        assert conv.is_haar
        assert card.waits.total() == waits
        conv.dwt_filters.mul_(2)
        assert not conv.is_haar


def test_a_compiler_sees_the_filters() -> None:
    x = torch.randn(1, 4, 6, 6)
    for scale in (1, 2):
        torch.compiler.reset()
        conv = WaveletConv(4, 3)
        with torch.no_grad():
            conv.dwt_filters.mul_(scale)
            torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), conv(x))
    torch.compiler.reset()
