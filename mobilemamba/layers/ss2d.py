"""SS2D: the two-dimensional selective state-space module.

Shape letters: B batch, C channels, H and W sides, L = H * W, K scan directions, D inner width, N state size,
R rank of the step size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.layer_norm import LayerNorm
from mobilemamba.ops.selective_scan import ScanInputs, expand_dt, selective_scan_2d
from mobilemamba.ops.transforms import is_channels_last


class SS2D(nn.Module):
    """Selective scans of a feature map in K directions, gated; (B, C, H, W) in and out.

    Args:
        dim: Channels C.
        directions: Scan directions K, see ``scan_order``.
        d_state: State size N.
        ssm_ratio: Inner width D divided by C.
        dt_rank: Rank R; ``"auto"`` is ``ceil(C / 16)``.
    """

    backend = "auto"  # backend of ``selective_scan``

    def __init__(
        self,
        dim: int,
        directions: int = 2,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
    ):
        super().__init__()
        inner = int(ssm_ratio * dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.directions, self.d_state, self.dt_rank = directions, d_state, rank

        self.in_proj = ConvNorm(dim, 2 * inner)  # first half: the scan's input; second half: the gate
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(directions, rank + 2 * d_state, inner))  # rows: dt, B, C
        self.dt_proj_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.zeros(directions, inner, d_state))  # A = -1
        self.D = nn.Parameter(torch.ones(directions, inner))
        self.out_norm = LayerNorm(inner)
        self.out_proj = ConvNorm(inner, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as the release does: steps of about softplus(0) = 0.7, not Mamba's range of small ones."""
        nn.init.uniform_(self.dt_proj_weight, 0, 0.1)
        nn.init.uniform_(self.dt_bias, 0, 0.1)
        bound = self.x_proj_weight.shape[-1] ** -0.5  # as in nn.Linear
        nn.init.uniform_(self.x_proj_weight, -bound, bound)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BDHW, gate_BDHW = self.expand(x_BCHW)
        return self.out_proj(self.scan(x_BDHW) * F.silu(gate_BDHW))

    def expand(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scan's input and the gate of its result, before the gate's SiLU; (B, D, H, W) each."""
        x_BDHW, gate_BDHW = self.in_proj(x_BCHW).chunk(2, dim=1)
        return F.silu(self.conv(x_BDHW)), gate_BDHW

    def scan(self, x_BDHW: Tensor) -> Tensor:
        """Scans in every direction, sums, and applies LayerNorm over the channels; keeps shape and memory format."""
        size = (x_BDHW.shape[2], x_BDHW.shape[3])
        y_BLD = selective_scan_2d(*self._selected(x_BDHW), size, self.backend, self.dt_proj_weight.transpose(1, 2))
        y_BDHW = self.out_norm(y_BLD).transpose(1, 2).unflatten(2, size)
        if is_channels_last(x_BDHW):
            return y_BDHW
        return y_BDHW.contiguous()

    def scan_inputs(self, x_BDHW: Tensor) -> ScanInputs:
        """Returns the scan's input and the steps, projections and state matrix computed from it, by position."""
        inputs = self._selected(x_BDHW)
        return inputs._replace(dt=expand_dt(inputs.dt, self.dt_proj_weight.transpose(1, 2)))

    def _selected(self, x_BDHW: Tensor) -> ScanInputs:
        """Returns the same with the steps in low-rank form, (B, K, L, R)."""
        u_BLD = x_BDHW.flatten(2).transpose(1, 2)  # a view if memory is channels-last
        projected_BLKC = F.linear(u_BLD, self.x_proj_weight.flatten(0, 1)).unflatten(2, (self.directions, -1))
        dt_BKLR, B_BKLN, C_BKLN = projected_BLKC.transpose(1, 2).split([self.dt_rank, self.d_state, self.d_state], 3)
        A_KDN = -torch.exp(self.A_log.float())
        return ScanInputs(u_BLD, dt_BKLR, A_KDN, B_BKLN, C_BKLN, self.D, self.dt_bias)
