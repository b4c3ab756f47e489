"""Softmax attention as a token mixer of feature maps: the control for the recurrent mixers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.layers.sequences import HEAD_DIM, number_of_heads, to_map


class Attention(nn.Module):
    """Softmax attention of every token to all, in heads of 16 channels, without positions; (B, C, H, W) in and out.

    Args:
        dim: Channels C, a multiple of 16.

    Raises:
        ConfigError: If ``dim`` is not a multiple of 16.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.heads = number_of_heads(dim)
        self.qkv = ConvNorm(dim, 3 * dim)
        self.out_proj = ConvNorm(dim, dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv_BNLF = (
            x.flatten(2).unflatten(1, (self.heads, HEAD_DIM)).transpose(2, 3) for x in self.qkv(x_BCHW).chunk(3, dim=1)
        )
        y_BNLF = F.scaled_dot_product_attention(*qkv_BNLF)
        return self.out_proj(to_map(y_BNLF.transpose(1, 2).flatten(2), x_BCHW))
