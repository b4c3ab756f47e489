"""The xLSTM's mLSTM as a token mixer of feature maps (Table 1 of the paper).

The paper gives its parameters and FLOPs, but not the module. The choices made here: head width 16; both directions
along the rows, with shared projections but separate gates; projections as 1x1 convolutions with BatchNorm; and queries
and keys from a depthwise convolution of the map, which replaces the causal convolution of the sequence model.

Shape letters: B batch, C channels, H and W sides, L = H * W, N heads, F channels of a head, K = 2 directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.sequences import DIRECTIONS, HeadNorm, both_ways, from_heads, number_of_heads, to_heads, to_map
from mobilemamba.ops.mlstm import mlstm


class MLSTM(nn.Module):
    """Reads a matrix memory with one input gate and one forget gate per head; (B, C, H, W) in and out.

    Args:
        dim: Channels C, a multiple of 16.

    Raises:
        ConfigError: If ``dim`` is not a multiple of 16.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.heads = number_of_heads(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.qk = ConvNorm(dim, 2 * dim)
        self.value_and_gate = ConvNorm(dim, 2 * dim)
        self.gates = nn.Conv2d(dim, DIRECTIONS * 2 * self.heads, 1)  # for each direction: input gates, forget gates
        self.norm = HeadNorm(dim)
        self.skip = nn.Parameter(torch.ones(dim))
        self.out_proj = ConvNorm(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as xLSTM does: gates that ignore the input, inputs near 1, memories of about 20 to 400 tokens."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            assert self.gates.bias is not None
            bias = self.gates.bias.unflatten(0, (DIRECTIONS, 2, self.heads))
            nn.init.normal_(bias[:, 0], std=0.1)
            bias[:, 1] = torch.linspace(3.0, 6.0, self.heads)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        conv_BCHW = F.silu(self.conv(x_BCHW))
        q_BCHW, k_BCHW = self.qk(conv_BCHW).chunk(2, dim=1)
        v_BCHW, gate_BCHW = self.value_and_gate(x_BCHW).chunk(2, dim=1)
        scanned = both_ways(self.gates(conv_BCHW)).unflatten(2, (DIRECTIONS, 2, self.heads))
        input_BKNL, forget_BKNL = torch.stack([scanned[:, k, k] for k in range(DIRECTIONS)], dim=1).unbind(2)
        h_BKNLF = mlstm(to_heads(q_BCHW), to_heads(k_BCHW), to_heads(v_BCHW), input_BKNL, forget_BKNL)
        h_BCHW = to_map(self.norm(from_heads(h_BKNLF)), x_BCHW) + self.skip[:, None, None] * conv_BCHW
        return self.out_proj(h_BCHW * torch.sigmoid(gate_BCHW))
