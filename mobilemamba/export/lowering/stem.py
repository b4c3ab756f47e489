"""The patch embedding, adapted to the blocks of channels that runtimes store together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.export.lowering.convolution import conv2d, numbers
from mobilemamba.layers.conv_norm import ConvReLU
from mobilemamba.layers.patch import PatchEmbed

#: Channels that runtimes store together; an incomplete block costs as much as a full one.
_BLOCK = 16


class Stem(nn.Module):
    """The patch embedding, with channels that would start an incomplete block kept separate; see ``_shares``."""

    def __init__(self, embed: PatchEmbed):
        super().__init__()
        convs = [conv for conv in embed if isinstance(conv, nn.Conv2d)]
        between = [_shares(conv.out_channels) for conv in convs[:-1]]
        widths = [[convs[0].in_channels], *between, [convs[-1].out_channels]]
        self.steps = nn.ModuleList(map(SharedConv, convs, widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        shares = [x]
        for step in self.steps:
            shares = step(shares)
        return shares[0]


class SharedConv(nn.Module):
    """A convolution, with its ReLU if it has one, whose input and output channels are split into shares."""

    def __init__(self, conv: nn.Conv2d, into: list[int], out: list[int]):
        super().__init__()
        weight, bias = numbers(conv)
        stride, padding = conv.stride[0], int(conv.padding[0])
        self.relu = isinstance(conv, ConvReLU)
        self.sums = nn.ModuleList(
            nn.ModuleList(
                conv2d(part, None if place else share_bias, stride, padding)
                for place, part in enumerate(share.split(into, 1))
            )
            for share, share_bias in zip(weight.split(out), bias.split(out), strict=True)
        )

    def forward(self, shares: list[Tensor]) -> list[Tensor]:
        outputs = []
        for convs in self.sums:
            assert isinstance(convs, nn.ModuleList)
            first, *others = (conv(share) for conv, share in zip(convs, shares, strict=True))
            y = sum(others, first)
            outputs.append(F.relu(y) if self.relu else y)
        return outputs


def _shares(channels: int) -> list[int]:
    """Returns the whole blocks and the rest, or all channels together if the rest nearly fills a block.

    ONNX Runtime pads the last block with zeros, and has only a slow path for numbers of channels not divisible by four.
    """
    whole, rest = channels // _BLOCK * _BLOCK, channels % _BLOCK
    return [whole, rest] if whole and rest and (rest <= _BLOCK // 2 or channels % 4) else [channels]
