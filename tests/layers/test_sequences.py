"""Maps as heads of sequences, and back."""

import pytest
import torch

from mobilemamba.layers.sequences import HeadNorm, both_ways, from_heads, to_heads, to_map

pytestmark = pytest.mark.kernels

SIZES = [(1, 1), (2, 3), (7, 5), (1, 6)]


def test_order() -> None:
    picture = torch.arange(6).reshape(1, 1, 2, 3)  # 0 1 2 / 3 4 5
    assert both_ways(picture)[0, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]


def test_a_head_is_sixteen_neighbouring_channels() -> None:
    x = torch.randn(2, 48, 3, 4)
    heads = to_heads(x)
    assert heads.shape == (2, 2, 3, 12, 16)
    assert torch.equal(heads[1, 0, 2, 7], x[1, 32:, 1, 3])
    assert torch.equal(heads[1, 1, 2, 4], x[1, 32:, 1, 3])  # the fifth from the end


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_token_returns_to_its_place(size: tuple[int, int]) -> None:
    x = torch.randn(2, 32, *size)
    tokens = from_heads(to_heads(x))
    torch.testing.assert_close(tokens, 2 * x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(to_map(tokens, x), 2 * x)


def test_norm_within_a_head() -> None:
    norm, tokens = HeadNorm(32), 3 + 5 * torch.randn(2, 7, 32)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    y, one = norm(tokens), tokens[1, 4, 16:]
    expected = (one - one.mean()) / one.var(unbiased=False).sqrt() * norm.weight[16:] + norm.bias[16:]
    torch.testing.assert_close(y[1, 4, 16:], expected, rtol=1e-4, atol=1e-4)


def test_the_memory_format_is_the_other_s() -> None:
    x, tokens = torch.randn(2, 32, 3, 4), torch.randn(2, 12, 32)
    last = x.to(memory_format=torch.channels_last)
    assert to_map(tokens, x).is_contiguous()
    assert to_map(tokens, last).is_contiguous(memory_format=torch.channels_last)
