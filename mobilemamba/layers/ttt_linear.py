"""TTT-Linear as a token mixer of feature maps (Table 1 of the paper).

The paper gives its parameters and FLOPs, but not the module. The choices made here: head width 16; mini-batches of 16
tokens; both directions along the rows, with everything shared; projections as 1x1 convolutions with BatchNorm; no
rotary positions and no output gate.

Shape letters: B batch, C channels, H and W sides, L = H * W, N heads, F channels of a head, K = 2 directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.sequences import HEAD_DIM, both_ways, from_heads, number_of_heads, to_heads, to_map
from mobilemamba.ops.ttt_linear import MINI_BATCH, ttt_linear


class TTTLinear(nn.Module):
    """Answers each token by a linear map trained on the tokens up to it; (B, C, H, W) in and out.

    Args:
        dim: Channels C, a multiple of 16.

    Raises:
        ConfigError: If ``dim`` is not a multiple of 16.
    """

    def __init__(self, dim: int):
        super().__init__()
        heads = number_of_heads(dim)
        self.qkv = ConvNorm(dim, 3 * dim)
        self.rate = nn.Conv2d(dim, heads, 1)
        self.share = nn.Parameter(torch.zeros(MINI_BATCH))  # added to 1, 1/2, 1/3, ..., which average the gradients
        self.inner_weight = nn.Parameter(torch.empty(heads, HEAD_DIM, HEAD_DIM))
        self.inner_bias = nn.Parameter(torch.zeros(dim))
        self.inner_gain = nn.Parameter(torch.ones(dim))
        self.inner_shift = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim)
        self.out_proj = ConvNorm(dim, dim)
        nn.init.normal_(self.inner_weight, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        q_BCHW, k_BCHW, v_BCHW = self.qkv(x_BCHW).chunk(3, dim=1)
        rate_BKNL = torch.sigmoid(both_ways(self.rate(x_BCHW))) / HEAD_DIM
        share_S = torch.relu(self.share + 1 / torch.arange(1, MINI_BATCH + 1, device=x_BCHW.device))
        bias_NF, gain_NF, shift_NF = (
            p.unflatten(0, (-1, HEAD_DIM)) for p in (self.inner_bias, self.inner_gain, self.inner_shift)
        )
        y_BKNLF = ttt_linear(
            to_heads(q_BCHW),
            to_heads(k_BCHW),
            to_heads(v_BCHW),
            rate_BKNL,
            share_S,
            self.inner_weight,
            bias_NF,
            gain_NF,
            shift_NF,
        )
        y_BLC = self.norm(from_heads(y_BKNLF))
        return self.out_proj(to_map(y_BLC, x_BCHW))
