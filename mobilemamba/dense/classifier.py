"""Heads that map a feature map to the logits of its pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm

_DROP_RATE = 0.1
_AUXILIARY_DIM = 256


class PixelClassifier(nn.Sequential):
    """Dropout of whole channels, then a 1x1 convolution; (B, C, h, w) to logits (B, classes, h, w).

    Args:
        in_chans: Channels C.
        num_classes: Classes.
    """

    def __init__(self, in_chans: int, num_classes: int):
        conv = nn.Conv2d(in_chans, num_classes, 1)
        nn.init.normal_(conv.weight, std=0.01)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        super().__init__(nn.Dropout2d(_DROP_RATE), conv)


class AuxiliaryHead(nn.Module):
    """A 3x3 ConvNorm with ReLU and a classifier on the second-last map, for a second loss in training.

    Args:
        channels: Channels of each map, the finest first.
        num_classes: Classes.
    """

    def __init__(self, channels: Sequence[int], num_classes: int):
        super().__init__()
        self.conv = ConvNorm(channels[-2], _AUXILIARY_DIM, 3, relu=True)
        self.classifier = PixelClassifier(_AUXILIARY_DIM, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.conv(maps[-2]))
