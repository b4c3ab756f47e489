"""The wavelet transform loses nothing and is PyWavelets'."""

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.wavelet.definition import HAAR, dwt2d, idwt2d, wavelet_filters

pytestmark = pytest.mark.kernels

WAVELETS = ["db1", "db2", "sym4", "coif1"]


def filters(name: str, channels: int) -> Tensor:
    return wavelet_filters(name).double().unsqueeze(1).repeat(channels, 1, 1, 1)


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("height", range(1, 10))
def test_reconstruction_is_exact(name: str, height: int) -> None:
    for width in range(1, 10):
        x, bank = torch.randn(2, 3, height, width, dtype=torch.float64), filters(name, 3)
        y = dwt2d(x, bank)
        assert y.shape == (2, 12, (height + 1) // 2, (width + 1) // 2)
        torch.testing.assert_close(idwt2d(y, bank, (height, width)), x, rtol=0, atol=2e-6)  # filters are float32


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 14)], ids=str)
def test_energy_is_kept(name: str, size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    torch.testing.assert_close(dwt2d(x, filters(name, 2)).norm(), x.norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WAVELETS)
def test_sub_bands_are_those_of_pywavelets(name: str) -> None:
    """But for a shift of the picture: PyWavelets centres its windows, this transform begins at the first sample."""
    x = torch.randn(1, 1, 8, 12, dtype=torch.float64)
    low, (along_h, along_w, both) = pywt.dwt2(x[0, 0].numpy(), name, mode="periodization")
    shift = pywt.Wavelet(name).dec_len // 2 - 1
    bands = dwt2d(x.roll((shift, shift), (2, 3)), filters(name, 1))[0]
    expected = torch.tensor(np.stack([low, along_h, along_w, both]))
    torch.testing.assert_close(bands, expected, rtol=1e-6, atol=1e-6)


def test_haar_equals_pywavelets_with_signs() -> None:
    x = torch.randn(1, 1, 6, 10, dtype=torch.float64)
    low, (along_h, along_w, both) = pywt.dwt2(x[0, 0].numpy(), "haar")
    expected = torch.tensor(np.stack([low, along_h, along_w, both]))
    torch.testing.assert_close(dwt2d(x, filters("haar", 1))[0], expected, rtol=1e-6, atol=1e-6)


def test_order_and_signs_of_the_haar_filters() -> None:
    expected = [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]
    torch.testing.assert_close(2 * wavelet_filters("db1"), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(HAAR, wavelet_filters("db1"))


@pytest.mark.parametrize("name", WAVELETS)
@pytest.mark.parametrize("size", [(4, 6), (5, 3)], ids=str)
def test_gradients(name: str, size: tuple[int, int]) -> None:
    bank = filters(name, 2)
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 8, *((side + 1) // 2 for side in size), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dwt2d(x, bank), x)
    assert torch.autograd.gradcheck(lambda y: idwt2d(y, bank, size), y)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("nosuch", "unknown wavelet 'nosuch'; expected 'none' or an orthogonal one", id="unknown"),
        pytest.param("morl", "unknown wavelet 'morl'", id="continuous"),
        pytest.param("bior2.2", "wavelet 'bior2.2' is not orthogonal.*use e.g. 'db1'", id="biorthogonal"),
    ],
)
def test_other_wavelets_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wavelet_filters(name)
