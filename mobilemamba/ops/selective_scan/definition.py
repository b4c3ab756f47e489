"""The selective scan as a loop over time: the definition that every faster backend is tested against.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.scan_order import by_position, by_step


class ScanInputs(NamedTuple):
    """Inputs of every backend, all indexed by position rather than by step, and channels last.

    Attributes:
        u: (B, L, D), a map that all directions share and whose results are summed; or (B, K, L, D), sequences.
        dt: Step sizes before bias and softplus, (B, K, L, D).
        A: State matrix, (K, D, N).
        B: Input projections, (B, K, L, N).
        C: Output projections, (B, K, L, N).
        D: Skip weights, (K, D).
        dt_bias: Step-size bias, (K, D).
    """

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor

    def by_step(self, size: Sequence[int]) -> tuple[Tensor, ...]:
        """Returns u, dt, B and C as LBKC, in the order of the steps of a map of ``size`` (empty for sequences)."""
        return tuple(by_step(x, len(self.A), size) for x in (self.u, self.dt, self.B, self.C))

    def merge(self, x_BKLD: Tensor) -> Tensor:
        """Reduces a tensor of all directions to u's shape: sums over the directions if they share u."""
        return x_BKLD if self.u.ndim == 4 else x_BKLD.sum(1)


def selective_scan_reference(
    u_BKDL: Tensor, dt_BKDL: Tensor, A_KDN: Tensor, B_BKNL: Tensor, C_BKNL: Tensor, D_KD: Tensor, dt_bias_KD: Tensor
) -> Tensor:
    """Scans in fp32, or in fp64 for fp64 input; differentiable by autograd. Arguments as in ``selective_scan``."""
    dtype = torch.promote_types(u_BKDL.dtype, torch.float32)
    u, dt, A, B, C, D, dt_bias = (x.to(dtype) for x in (u_BKDL, dt_BKDL, A_KDN, B_BKNL, C_BKNL, D_KD, dt_bias_KD))
    dt = F.softplus(dt + dt_bias[..., None])
    h_BKDN = torch.zeros(*u.shape[:3], A.shape[-1], dtype=dtype, device=u.device)
    y = []
    for t in range(u.shape[-1]):
        dt_BKD1 = dt[..., t, None]
        # Mamba, eq. 4: A is discretised by zero-order hold, B by Euler's rule.
        h_BKDN = torch.exp(dt_BKD1 * A) * h_BKDN + dt_BKD1 * B[:, :, None, :, t] * u[..., t, None]
        y.append((h_BKDN * C[:, :, None, :, t]).sum(-1) + D * u[..., t])
    return torch.stack(y, dim=-1).to(u_BKDL.dtype) if y else torch.zeros_like(u_BKDL)


def forward(x: ScanInputs, size: Sequence[int]) -> Tensor:
    """Scans by position."""
    exact = x.u.to(torch.promote_types(x.u.dtype, torch.float32))  # so that only the sum over the directions is rounded
    u_BKDL, dt_BKDL, B_BKNL, C_BKNL = (s.permute(1, 2, 3, 0) for s in x._replace(u=exact).by_step(size))
    y_BKDL = selective_scan_reference(u_BKDL, dt_BKDL, x.A, B_BKNL, C_BKNL, x.D, x.dt_bias)
    return x.merge(by_position(y_BKDL.permute(3, 0, 1, 2), size))
