"""The selective scan as a loop over time: the definition that every faster backend is tested against.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
