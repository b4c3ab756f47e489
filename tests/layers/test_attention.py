"""Attention against its equation written out for one picture."""

import torch

from mobilemamba.layers.attention import Attention


@torch.no_grad()
def test_the_module_is_its_equation() -> None:
    module = Attention(32).double().eval()
    x = torch.randn(1, 32, 3, 5, dtype=torch.float64)
    q, k, v = (y[0].flatten(1).T for y in module.qkv(x).split(32, 1))
    heads = []
    for own in (slice(0, 16), slice(16, 32)):
        weights = torch.softmax(q[:, own] @ k[:, own].T / 4, dim=-1)
        heads.append(weights @ v[:, own])
    expected = module.out_proj(torch.cat(heads, 1).T.reshape(1, 32, 3, 5))
    torch.testing.assert_close(module(x), expected)
