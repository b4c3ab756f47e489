"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", 2019): a pyramid and a head on its levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from mobilemamba.dense.classifier import PixelClassifier
from mobilemamba.dense.pooled import Doubling, resize
from mobilemamba.layers.conv_norm import ConvNorm


class FPN(FeaturePyramidNetwork):
    """torchvision's pyramid on the last of a list of maps, finest first; each becomes (B, D, h, w) of its own size.

    Args:
        channels: Channels of each map that is read.
        dim: Channels D of the levels.
    """

    def __init__(self, channels: Sequence[int], dim: int = 256):
        super().__init__(list(channels), dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        taken = maps[-len(self.inner_blocks) :]
        return list(super().forward({str(level): x for level, x in enumerate(taken)}).values())


class SemanticFPNHead(nn.Module):
    """Brings each level to the finest one's size by 3x3 ConvNorms and doublings, and classifies their sum.

    Args:
        in_chans: Channels of every level.
        strides: Stride of each level, the finest first.
        num_classes: Classes.
        dim: Width.
    """

    def __init__(self, in_chans: int, strides: Sequence[int], num_classes: int, dim: int = 128):
        super().__init__()
        self.levels = nn.ModuleList()
        for stride in strides:
            doublings = (stride // strides[0]).bit_length() - 1
            level: list[nn.Module] = []
            for step in range(max(1, doublings)):
                level.append(ConvNorm(in_chans if step == 0 else dim, dim, 3, relu=True))
                if doublings:
                    level.append(Doubling())
            self.levels.append(nn.Sequential(*level))
        self.classifier = PixelClassifier(dim, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *coarser = (level(x) for level, x in zip(self.levels, maps, strict=True))
        # If a map's side was odd before it was halved, twice the halved side is one pixel too many.
        fitting = (resize(x, finest.shape[-2:]) for x in coarser)
        return self.classifier(sum(fitting, start=finest))
