"""The part of SS2D between its projections by the compiled CPU kernel; channels-last, without gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.operator import inference_operator
from mobilemamba.ops.scan_order import check_directions, scan_order
from mobilemamba.ops.selective_scan.native import Scan

_LAYOUT = {"u": "BHWD", "gate": "BHWD", "dt_weight": "KRD", "A": "KDN", "D": "KD", "dt_bias": "KD"}
_LAYOUT |= {"norm_weight": "D", "norm_bias": "D"}


def check_arguments(u: Tensor, projected: Tensor, gate: Tensor, *others: Any) -> None:
    """Checks the operator's arguments, on any device."""
    sizes = check("scan_norm_gate", _LAYOUT, (u, gate, *others[:6]))
    directions, rank, d_state = (sizes[letter] for letter in "KRN")
    check_directions(directions)
    if rank == 0:
        raise ConfigError("scan_norm_gate: dt_weight has rank 0; expected 1 at least")
    projections = directions * (rank + 2 * d_state)
    check("scan_norm_gate", {"u": "BHWD", "projected": "BHWP"}, (u, projected), P=projections)


def split_projected(projected_BHWC: Tensor, dt_weight_KRD: Tensor, A_KDN: Tensor) -> tuple[Tensor, ...]:
    """Splits the projection into views: low-rank step sizes (B, K, L, R), and B and C (B, K, L, N)."""
    (directions, rank, _), d_state = dt_weight_KRD.shape, A_KDN.shape[2]
    parts = projected_BHWC.flatten(1, 2).unflatten(2, (directions, -1)).transpose(1, 2)
    return parts.split([rank, d_state, d_state], dim=-1)


@inference_operator(check_arguments)
def scan_norm_gate(
    u_BHWD: Tensor,
    projected_BHWC: Tensor,
    gate_BHWD: Tensor,
    dt_weight_KRD: Tensor,
    A_KDN: Tensor,
    D_KD: Tensor,
    dt_bias_KD: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
) -> Tensor:
    """Computes the operator on a CPU; arguments and result as in ``mobilemamba.ops.scan_norm_gate.definition``."""
    dt, B, C = split_projected(projected_BHWC.float(), dt_weight_KRD, A_KDN)
    order = scan_order(len(A_KDN), (u_BHWD.shape[1], u_BHWD.shape[2]))
    scan = Scan(u_BHWD.flatten(1, 2), dt, A_KDN, B, C, D_KD, dt_bias_KD, order, dt_weight_KRD)
    y = u_BHWD.new_empty(u_BHWD.shape, dtype=scan.dtype)
    scan.forward(y.flatten(1, 2), (norm_weight, norm_bias, norm_eps), gate_BHWD.flatten(1, 2))
    return y.to(u_BHWD.dtype)
