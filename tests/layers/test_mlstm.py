"""The mLSTM module against its equations written out for one picture."""

import torch
import torch.nn.functional as F

from mobilemamba.layers.mlstm import MLSTM
from mobilemamba.ops.mlstm import mlstm_reference


@torch.no_grad()
def test_the_module_is_its_equations() -> None:
    module = MLSTM(32).double().eval()
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 32, 3, 5, dtype=torch.float64)
    conv = F.silu(module.conv(x))
    q, k, v, gate = (y[0].flatten(1).T for y in (*module.qk(conv).split(32, 1), *module.value_and_gate(x).split(32, 1)))
    gates = module.gates(conv)[0].flatten(1).T  # (L, 8): two input and two forget gates for either direction
    merged = torch.zeros(15, 32, dtype=torch.float64)
    for direction, order in enumerate((torch.arange(15), torch.arange(15).flip(0))):
        for head in range(2):
            own = slice(16 * head, 16 * head + 16)
            sequences = (s[order][None, None, None, :, own] for s in (q, k, v))
            scalars = (gates[order, 4 * direction + 2 * kind + head][None, None, None] for kind in range(2))
            merged[order, own] += mlstm_reference(*sequences, *scalars)[0, 0, 0]
    normed = F.group_norm(merged, 2, module.norm.weight, module.norm.bias).T.reshape(1, 32, 3, 5)
    skipped = normed + module.skip[:, None, None] * conv
    expected = module.out_proj(skipped * torch.sigmoid(gate.T.reshape(1, 32, 3, 5)))
    torch.testing.assert_close(module(x), expected)


def test_start() -> None:
    """Forget gates from sigmoid(3) to sigmoid(6) in both directions, input gates near 1, nothing depends on x."""
    module = MLSTM(64)
    bias = module.gates.bias.unflatten(0, (2, 2, 4))
    assert not module.gates.weight.any()
    assert bias[:, 1].tolist() == 2 * [[3, 4, 5, 6]]
    assert 0 < bias[:, 0].abs().max() < 0.5
