"""Converts feature maps to heads of scan sequences and back, for the token mixers that can replace Mamba.

Shape letters: B batch, K = 2 scan directions (rows, rows backwards), C channels, H and W sides, L = H * W, N heads,
F = 16 channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.ops.transforms import is_channels_last

HEAD_DIM = 16  # the only width that divides the global channels of every published model
DIRECTIONS = 2  # rows, rows backwards


def number_of_heads(dim: int) -> int:
    """Returns the number of heads N for C channels.

    Raises:
        ConfigError: If C is not a multiple of 16.
    """
    if dim < 1 or dim % HEAD_DIM:
        nearest = max(1, round(dim / HEAD_DIM)) * HEAD_DIM
        raise ConfigError(f"{dim} channels: heads of {HEAD_DIM} need a multiple of {HEAD_DIM}, e.g. {nearest}")
    return dim // HEAD_DIM


class HeadNorm(nn.LayerNorm):
    """LayerNorm of each token within each head, with a weight and a bias for each channel; (B, L, C) in and out.

    Args:
        dim: Channels C, a multiple of 16.
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.heads = number_of_heads(dim)

    def forward(self, y_BLC: Tensor) -> Tensor:
        normed = F.group_norm(y_BLC.flatten(0, 1), self.heads, self.weight, self.bias, self.eps)
        return normed.unflatten(0, y_BLC.shape[:2])


def both_ways(x_BCHW: Tensor) -> Tensor:
    """Returns a map's tokens row by row, and the same backwards: x_BKCL."""
    rows_BCL = x_BCHW.flatten(2)
    return torch.stack([rows_BCL, rows_BCL.flip(-1)], dim=1)


def to_heads(x_BCHW: Tensor) -> Tensor:
    """Returns both directions of a map, split into heads: x_BKNLF."""
    return both_ways(x_BCHW).unflatten(2, (-1, HEAD_DIM)).transpose(3, 4)


def from_heads(y_BKNLF: Tensor) -> Tensor:
    """Puts every token's outputs back in its place and adds up the directions: y_BLC, row by row."""
    forwards_BNLF, backwards_BNLF = y_BKNLF.unbind(1)
    return (forwards_BNLF + backwards_BNLF.flip(2)).transpose(1, 2).flatten(2)


def to_map(y_BLC: Tensor, like_BCHW: Tensor) -> Tensor:
    """Returns the tokens as a map y_BCHW with the size and memory format of ``like_BCHW``."""
    y_BCHW = y_BLC.transpose(1, 2).unflatten(2, like_BCHW.shape[-2:])
    if is_channels_last(like_BCHW):
        return y_BCHW.contiguous(memory_format=torch.channels_last)
    return y_BCHW.contiguous()
