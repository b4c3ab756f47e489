"""DeepLabv3's head (Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017).

torchvision's head joins its branches by a 1x1 convolution, which another one follows; here, as in the paper's
experiments, a single 3x3 convolution does both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobilemamba.dense.classifier import PixelClassifier
from mobilemamba.dense.pooled import PooledConv
from mobilemamba.layers.conv_norm import ConvNorm


class DeepLabV3Head(nn.Module):
    """Reads the coarsest map as a whole, by pixel, and by 3x3 kernels of dilation 12, 24 and 36; maps to logits.

    Args:
        channels: Channels of each map, the finest first; only the last one is read.
        num_classes: Classes.
        dim: Width.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int = 256):
        super().__init__()
        in_chans = channels[-1]
        self.image_pool = PooledConv(in_chans, dim)
        dilated = (ConvNorm(in_chans, dim, 3, relu=True, dilation=dilation) for dilation in (12, 24, 36))
        self.aspp = nn.ModuleList([ConvNorm(in_chans, dim, relu=True), *dilated])
        self.bottleneck = ConvNorm((1 + len(self.aspp)) * dim, dim, 3, relu=True)
        self.classifier = PixelClassifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        views = [self.image_pool(x), *(branch(x) for branch in self.aspp)]
        return self.classifier(self.bottleneck(torch.cat(views, 1)))
