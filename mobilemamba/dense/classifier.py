"""From a map to the logits of its pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mobilemamba.layers.conv_norm import ConvNorm


class PixelClassifier(nn.Sequential):
    """Dropout of whole channels, then a 1x1 convolution; (B, C, h, w) to logits (B, classes, h, w).

    Args:
        in_chans: Channels C.
        num_classes: Classes.
        drop_rate: Probability of dropping a channel in training.
    """

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float = 0.1):
        conv = nn.Conv2d(in_chans, num_classes, 1)
        nn.init.normal_(conv.weight, std=0.01)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        super().__init__(nn.Dropout2d(drop_rate), conv)


class AuxiliaryHead(nn.Module):
    """A 3x3 ConvNorm with ReLU and a classifier on the last map but one, for a second loss in training.

    Args:
        channels: Channels of each of the maps, the finest first.
        num_classes: Classes.
        dim: Width.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int = 256):
        super().__init__()
        self.conv = ConvNorm(channels[-2], dim, 3, relu=True)
        self.classifier = PixelClassifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.conv(maps[-2]))
