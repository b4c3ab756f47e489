"""RWKV-6 as a token mixer of feature maps (Table 1 of the paper).

The paper gives its parameters and FLOPs, but not the module. The choices made here: head width 16; both directions
along the rows, with shared projections; projections as 1x1 convolutions with BatchNorm; low ranks 16 and 32; and the
four neighbours (Duan et al., "Vision-RWKV", arXiv:2403.02308) in place of the previous token, as they have no
direction.

Shape letters: B batch, C channels, H and W sides, L = H * W, N heads, F channels of a head, K = 2 directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.sequences import DIRECTIONS, HEAD_DIM, HeadNorm, from_heads, to_heads, to_map
from mobilemamba.ops.rwkv6 import rwkv6

MIX_RANK = 16
DECAY_RANK = 32
_INPUTS = 5  # receptance, key, value, gate, decay


class RWKV6(nn.Module):
    """Reads a decaying memory of outer products whose decay depends on the input; (B, C, H, W) in and out.

    Args:
        dim: Channels C, a multiple of 16.

    Raises:
        ConfigError: If ``dim`` is not a multiple of 16.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.mix_x = nn.Parameter(torch.full((dim,), 0.5))  # half the token, half its neighbours
        self.mix = nn.Parameter(torch.full((_INPUTS, dim), 0.5))
        self.mix_down = nn.Conv2d(dim, _INPUTS * MIX_RANK, 1, bias=False)
        self.mix_up = nn.Conv2d(_INPUTS * MIX_RANK, _INPUTS * dim, 1, groups=_INPUTS, bias=False)
        self.receptance = ConvNorm(dim, dim)
        self.key = ConvNorm(dim, dim)
        self.value = ConvNorm(dim, dim)
        self.gate = ConvNorm(dim, dim)
        self.decay_down = nn.Conv2d(dim, DECAY_RANK, 1, bias=False)
        self.decay_up = nn.Conv2d(DECAY_RANK, dim, 1, bias=False)
        # Memories of about 2 to 400 tokens: the decay is exp(-exp(decay)).
        self.decay = nn.Parameter(torch.linspace(-6.0, -1.0, dim).repeat(DIRECTIONS, 1))
        self.bonus = nn.Parameter(torch.full((DIRECTIONS, dim), 0.5))
        self.norm = HeadNorm(dim)
        self.out_proj = ConvNorm(dim, dim)
        for down, up in ((self.mix_down, self.mix_up), (self.decay_down, self.decay_up)):
            nn.init.uniform_(down.weight, -1e-4, 1e-4)  # nothing depends on the input yet
            nn.init.uniform_(up.weight, -1e-2, 1e-2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        to_shifted_BCHW = shift_to_neighbours(x_BCHW) - x_BCHW
        lora_BCHW = self.mix_up(torch.tanh(self.mix_down(x_BCHW + to_shifted_BCHW * self.mix_x[:, None, None])))
        r_BCHW, k_BCHW, v_BCHW, gate_BCHW, w_BCHW = (
            x_BCHW + to_shifted_BCHW * (mix_C[:, None, None] + lora)
            for mix_C, lora in zip(self.mix, lora_BCHW.chunk(_INPUTS, dim=1), strict=True)
        )
        decay_KNLF = self.decay.unflatten(1, (-1, 1, HEAD_DIM))
        omega_BKNLF = decay_KNLF + to_heads(self.decay_up(torch.tanh(self.decay_down(w_BCHW))))
        y_BKNLF = rwkv6(
            to_heads(self.receptance(r_BCHW)),
            to_heads(self.key(k_BCHW)),
            to_heads(self.value(v_BCHW)),
            -torch.exp(omega_BKNLF),
            self.bonus.unflatten(1, (-1, HEAD_DIM)),
        )
        y_BCHW = to_map(self.norm(from_heads(y_BKNLF)), x_BCHW)
        return self.out_proj(y_BCHW * F.silu(self.gate(gate_BCHW)))


def shift_to_neighbours(x_BCHW: Tensor) -> Tensor:
    """Shifts each quarter of the channels by one pixel: from the left, the right, above and below; zeros move in."""
    left, right, above, below = x_BCHW.chunk(4, dim=1)
    return torch.cat(
        [
            F.pad(left, (1, -1)),
            F.pad(right, (-1, 1)),
            F.pad(above, (0, 0, 1, -1)),
            F.pad(below, (0, 0, -1, 1)),
        ],
        dim=1,
    )
