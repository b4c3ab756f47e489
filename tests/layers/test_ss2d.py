"""SS2D's size, gradients and memory formats."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mobilemamba.layers.ss2d import SS2D

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize(
    ("dim", "choices"),
    [(48, {}), (160, {}), (20, {"ssm_ratio": 1, "d_state": 16}), (32, {"dt_rank": 5, "d_state": 2})],
    ids=str,
)
def test_number_of_parameters(dim: int, choices: dict[str, Any], directions: int) -> None:
    ss2d = SS2D(dim, directions, **choices)
    C, K, N = dim, directions, choices.get("d_state", 1)
    d, r = choices.get("ssm_ratio", 2) * C, choices.get("dt_rank", math.ceil(C / 16))
    projections = 3 * d * C + 4 * d + 2 * C  # with their norms
    scan = K * d * (r + 2 * N) + K * d * r + K * d + K * d * N + K * d  # x_proj, dt_proj, dt bias, A, D
    assert sum(p.numel() for p in ss2d.parameters()) == projections + 10 * d + scan + 2 * d


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_the_module_is_its_equations(directions: int) -> None:
    """Against the same steps written out for one picture."""
    ss2d = SS2D(16, directions, d_state=3).eval()
    x = torch.randn(1, 16, 3, 5)
    sequences = {1: [0], 2: [0, 2], 4: [0, 1, 2, 3]}[directions]
    orders = [torch.arange(15), torch.arange(15).reshape(3, 5).T.flatten()]
    orders += [order.flip(0) for order in orders]
    with torch.no_grad():
        u, gate = ss2d.in_proj(x).chunk(2, 1)
        u = F.silu(ss2d.conv(u))[0].flatten(1)  # (D, L)
        merged = torch.zeros_like(u)
        for k, order in enumerate(orders[i] for i in sequences):
            dt, B, C = (ss2d.x_proj_weight[k] @ u[:, order]).split([1, 3, 3])
            delta = F.softplus(ss2d.dt_proj_weight[k] @ dt + ss2d.dt_bias[k][:, None])
            h = torch.zeros(32, 3)
            for t, place in enumerate(order):
                decay = torch.exp(-delta[:, t, None] * ss2d.A_log[k].exp())
                h = decay * h + delta[:, t, None] * B[:, t] * u[:, place, None]
                merged[:, place] += h @ C[:, t] + ss2d.D[k] * u[:, place]
        normed = F.layer_norm(merged.T, (32,), ss2d.out_norm.weight, ss2d.out_norm.bias).T.reshape(1, 32, 3, 5)
        expected = ss2d.out_proj(normed * F.silu(gate))
        torch.testing.assert_close(ss2d(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_gradient_reaches_every_parameter(directions: int) -> None:
    ss2d = SS2D(16, directions, d_state=2)
    ss2d(torch.randn(2, 16, 4, 5)).square().sum().backward()
    assert not [n for n, p in ss2d.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_memory_format_is_kept(directions: int) -> None:
    ss2d, x = SS2D(16, directions).eval(), torch.randn(2, 16, 4, 5)
    with torch.no_grad():
        plain, last = ss2d(x), ss2d(x.to(memory_format=torch.channels_last))
        assert ss2d.scan(x.repeat(1, 2, 1, 1)).is_contiguous()
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-6)


def test_start() -> None:
    ss2d = SS2D(32)
    assert not ss2d.A_log.any()  # A = -1
    assert (ss2d.D == 1).all()
    for parameter in (ss2d.dt_bias, ss2d.dt_proj_weight):
        assert 0 <= parameter.min() < 0.02
        assert 0.08 < parameter.max() < 0.1
    assert 0.12 < -ss2d.x_proj_weight.min() <= 0.125  # 64 ** -0.5
    assert 0.12 < ss2d.x_proj_weight.max() <= 0.125


def test_the_state_matrix_is_not_rounded_in_half_precision() -> None:
    ss2d = SS2D(16).bfloat16()
    torch.nn.init.normal_(ss2d.A_log)
    found = ss2d.scan_inputs(torch.randn(1, 32, 2, 3, dtype=torch.bfloat16)).A
    assert torch.equal(found, -ss2d.A_log.float().exp())


def test_reversing_a_sequence_needs_two_directions() -> None:
    """One direction sees only what came before; two see the whole map."""
    x = torch.zeros(1, 16, 1, 9, requires_grad=True)

    def seen_from_the_first_place(directions: int) -> torch.Tensor:
        ss2d = SS2D(16, directions).eval()
        y = ss2d.scan(torch.cat([x, x + 1], 1) + torch.rand(1, 32, 1, 9))
        (gradient,) = torch.autograd.grad(y[..., 0].square().sum(), x)
        return gradient.abs().sum((0, 1, 2)) > 0

    assert seen_from_the_first_place(1).tolist() == [True] + 8 * [False]
    assert seen_from_the_first_place(2).all()
