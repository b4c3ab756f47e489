"""The TTT-Linear module against its equations written out for one picture."""

import pytest
import torch
import torch.nn.functional as F

from mobilemamba.layers.ttt_linear import TTTLinear
from mobilemamba.ops.ttt_linear import ttt_linear_reference


@torch.no_grad()
def test_the_module_is_its_equations() -> None:
    module = TTTLinear(32).double().eval()
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 32, 3, 7, dtype=torch.float64)
    q, k, v = (y[0].flatten(1).T for y in module.qkv(x).split(32, 1))
    rates = torch.sigmoid(module.rate(x))[0].flatten(1).T / 16  # (L, 2)
    shares = torch.tensor([max(0.0, 1 / (t + 1) + module.share[t].item()) for t in range(16)]).double()
    inner = [p.reshape(2, 16) for p in (module.inner_bias, module.inner_gain, module.inner_shift)]
    merged = torch.zeros(21, 32, dtype=torch.float64)
    for order in (torch.arange(21), torch.arange(21).flip(0)):
        for head in range(2):
            own = slice(16 * head, 16 * head + 16)
            sequences = (s[order][None, None, None, :, own] for s in (q, k, v))
            start = (module.inner_weight[head, None], *(p[head, None] for p in inner))
            out = ttt_linear_reference(*sequences, rates[order, head][None, None, None], shares, *start)
            merged[order, own] += out[0, 0, 0]
    normed = F.layer_norm(merged, (32,), module.norm.weight, module.norm.bias)
    torch.testing.assert_close(module(x), module.out_proj(normed.T.reshape(1, 32, 3, 7)), rtol=1e-6, atol=1e-6)


def test_start() -> None:
    module = TTTLinear(64)
    assert not any(p.any() for p in (module.share, module.inner_bias, module.inner_shift))
    assert module.inner_weight.std().item() == pytest.approx(0.02, rel=0.1)
