"""The part of SS2D between its projections in one pass, for inference: step sizes, scan, LayerNorm and gate.

Shape letters: B batch, H and W sides, K scan directions, D inner width, N state size, R rank of the step size,
C = K (R + 2 N).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.ops.backends import Backends, standard_only
from mobilemamba.ops.native import library
from mobilemamba.ops.scan_norm_gate import native, triton
from mobilemamba.ops.selective_scan import selective_scan_2d


def definition(
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
    """``LayerNorm(scan(u)) * SiLU(gate)``, by SS2D's own steps.

    Args:
        u_BHWD: Input of the scan.
        projected_BHWC: For each direction in turn: R low-rank step sizes, N numbers of B, N numbers of C.
        gate_BHWD: Gate before its SiLU.
        dt_weight_KRD: Maps low-rank step sizes to the channels; in float32, as are all that follow.
        A_KDN: State matrix.
        D_KD: Skip weights.
        dt_bias_KD: Step-size bias.
        norm_weight: (D,), weight of the LayerNorm.
        norm_bias: (D,), bias of the LayerNorm.
        norm_eps: Epsilon of the LayerNorm.

    Returns:
        (B, H, W, D), of u's dtype.
    """
    size = u_BHWD.shape[1], u_BHWD.shape[2]
    backend = "auto" if standard_only() else "reference"  # a loop over all positions would make an export too large
    exact = torch.promote_types(u_BHWD.dtype, torch.float32)
    u, projected, gate = (x.to(exact) for x in (u_BHWD, projected_BHWC, gate_BHWD))
    dt, B, C = native.split_projected(projected, dt_weight_KRD, A_KDN)
    y = selective_scan_2d(u.flatten(1, 2), dt @ dt_weight_KRD, A_KDN, B, C, D_KD, dt_bias_KD, size, backend)
    normed = F.layer_norm(y.unflatten(1, size), norm_weight.shape, norm_weight, norm_bias, norm_eps)
    return (normed * F.silu(gate)).to(u_BHWD.dtype)


scan_norm_gate = Backends("scan, norm, gate", definition, library.backend(native.scan_norm_gate), triton.BACKEND)
