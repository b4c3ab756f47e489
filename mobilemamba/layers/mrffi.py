"""MRFFI: the multi-receptive-field feature interaction module (Section 3.3 of the paper)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


@register_notrace_module  # a single node for torch.fx, which cannot follow what depends on a shape
class MRFFI(nn.Module):
    """Mixes a part of the channels globally and a part locally, keeps the rest, and projects; (B, C, H, W) in and out.

    Args:
        splits: (global, local, identity) channels; each may be 0.
        global_mixer: Module for the first part; the identity if that part has no channels.
        local_mixer: Module for the second part; the identity if that part has no channels.
    """

    def __init__(self, splits: tuple[int, int, int], global_mixer: nn.Module, local_mixer: nn.Module):
        super().__init__()
        dim = sum(splits)
        self.splits = list(splits)
        self.global_mixer = global_mixer
        self.local_mixer = local_mixer
        self.act = nn.ReLU()
        self.proj = ConvNorm(dim, dim, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x_global, x_local, x_identity = x.split(self.splits, dim=1)
        mixed = torch.cat([self.global_mixer(x_global), self.local_mixer(x_local), x_identity], dim=1)
        return self.proj(self.act(mixed))
