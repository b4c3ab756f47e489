"""The RWKV-6 module against its equations written out for one picture, and its shift."""

import torch
import torch.nn.functional as F

from mobilemamba.layers.rwkv6 import RWKV6, shift_to_neighbours
from mobilemamba.ops.rwkv6 import rwkv6_reference


def test_shift() -> None:
    picture = torch.arange(1, 7).reshape(1, 1, 2, 3).repeat(1, 4, 1, 1)  # 1 2 3 / 4 5 6
    assert shift_to_neighbours(picture)[0].tolist() == [
        [[0, 1, 2], [0, 4, 5]],
        [[2, 3, 0], [5, 6, 0]],
        [[0, 0, 0], [1, 2, 3]],
        [[4, 5, 6], [0, 0, 0]],
    ]


@torch.no_grad()
def test_the_module_is_its_equations() -> None:
    module = RWKV6(32).double().eval()
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 32, 3, 5, dtype=torch.float64)
    y, tokens = module(x), x[0].flatten(1).T  # (L, C)
    difference = shift_to_neighbours(x)[0].flatten(1).T - tokens
    base = torch.tanh((tokens + difference * module.mix_x) @ module.mix_down.weight[:, :, 0, 0].T)
    ups = module.mix_up.weight[:, :, 0, 0].chunk(5)
    mixed = [tokens + difference * (module.mix[i] + base[:, 16 * i : 16 * (i + 1)] @ ups[i].T) for i in range(5)]
    r, k, v, gate = (
        project(m.T.reshape(1, 32, 3, 5))[0].flatten(1).T
        for project, m in zip((module.receptance, module.key, module.value, module.gate), mixed, strict=False)
    )
    low_rank = torch.tanh(mixed[4] @ module.decay_down.weight[:, :, 0, 0].T) @ module.decay_up.weight[:, :, 0, 0].T
    merged = torch.zeros(15, 32, dtype=torch.float64)
    for direction, order in enumerate((torch.arange(15), torch.arange(15).flip(0))):
        log_decay = -torch.exp(module.decay[direction] + low_rank)
        for head in range(2):
            own = slice(16 * head, 16 * head + 16)
            sequences = (s[order][None, None, None, :, own] for s in (r, k, v, log_decay))
            out = rwkv6_reference(*sequences, module.bonus[direction, own][None, None])
            merged[order, own] += out[0, 0, 0]
    normed = F.group_norm(merged, 2, module.norm.weight, module.norm.bias)
    expected = module.out_proj((normed * F.silu(gate)).T.reshape(1, 32, 3, 5))
    torch.testing.assert_close(y, expected)


def test_start() -> None:
    module = RWKV6(32)
    memory = torch.exp(module.decay)  # tokens until a memory has faded: 1 / -log w
    assert 2 < (1 / memory).min() < 3
    assert 390 < (1 / memory).max() < 410
    for down, up in ((module.mix_down, module.mix_up), (module.decay_down, module.decay_up)):
        assert up(torch.tanh(down(torch.randn(2, 32, 3, 3)))).abs().max() < 1e-3  # nothing depends on the input yet
