"""Networks for semantic segmentation: a timm backbone, an optional neck, and heads.

picture (B, in_chans, H, W)
  backbone               maps, the finest first
  neck                   levels of a pyramid; semantic_fpn only
  head                   logits at a map's size, then at the picture's
  auxiliary_head         the same from the second-last map, in training
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.dense.backbone import create_backbone
from mobilemamba.dense.classifier import AuxiliaryHead
from mobilemamba.dense.deeplabv3 import DeepLabV3Head
from mobilemamba.dense.network import DenseNetwork
from mobilemamba.dense.pixels import likeliest
from mobilemamba.dense.pooled import resize
from mobilemamba.dense.pspnet import PSPNetHead
from mobilemamba.dense.semantic_fpn import FPN, SemanticFPNHead
from mobilemamba.errors import ConfigError, check_choice
from mobilemamba.layers.conv_norm import ConvNorm
from mobilemamba.models.config import ArchOverrides
from mobilemamba.models.runtime import RuntimeNetwork, scaled
from mobilemamba.ops.backends import is_traced

_ON_LAST_MAP: dict[str, Callable[..., nn.Module]] = {"deeplabv3": DeepLabV3Head, "pspnet": PSPNetHead}
SEGMENTATION_HEADS = (*_ON_LAST_MAP, "semantic_fpn")
#: Options of a segmenter that a card stores, as arguments of :func:`create_segmenter`.
SEGMENTATION_OPTIONS: dict[str, type] = {"auxiliary": bool, "head_dim": int, "output_stride": int}
_LEVELS = 4  # the most of a pyramid
_FINEST = 4  # least stride of a level
_NECK_DIM = 256  # channels of every level


class Segmenter(DenseNetwork):
    """Maps pictures (B, in_chans, H, W) of any size from 32 px a side to logits (B, classes, H, W), without padding.

    Args:
        backbone: Maps pictures to a list of maps, see :func:`~mobilemamba.dense.backbone.create_backbone`.
        head: Maps these to logits; its last layer is its ``classifier``.
        neck: Maps the backbone's maps to those that the head reads; without a neck, the head reads the backbone's.
        auxiliary_head: Maps the backbone's maps to logits, for a second loss in training.

    Raises:
        ConfigError: If pictures are too small or, in training, too few for the norms.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        neck: nn.Module | None = None,
        auxiliary_head: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.auxiliary_head = auxiliary_head

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.coarse_logits(x), x.shape[-2:])

    def forward_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of the head and of the auxiliary head, if any, (B, classes, H, W) each, for training."""
        return tuple(resize(each, x.shape[-2:]) for each in self._logits(x, auxiliary=True))

    def coarse_logits(self, x: Tensor) -> Tensor:
        """Returns the logits at a map's size, (B, classes, h, w); ``forward`` scales them to the pictures' size."""
        return self._logits(x, auxiliary=False)[0]

    def labels(self, x: Tensor) -> Tensor:
        """Returns the class of each pixel, (B, H, W) int64, from ``forward``'s logits without holding them all."""
        return likeliest(self.coarse_logits(x), (x.shape[-2], x.shape[-1]))

    def _logits(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        with self.refusing_unsuitable(x):
            maps = self.backbone(x)
            logits = [self.head(maps if self.neck is None else self.neck(maps))]
            if auxiliary and self.auxiliary_head is not None:
                logits.append(self.auxiliary_head(maps))
        if not (self.training or is_traced()):  # channels last takes half the time to resize, a fifth for the argmax
            logits = [each.contiguous(memory_format=torch.channels_last) for each in logits]
        return logits

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Returns the 1x1 convolutions of the logits, which a new number of classes replaces; timm's name for them."""
        heads: list[Any] = [self.head] if self.auxiliary_head is None else [self.head, self.auxiliary_head]
        return tuple(head.classifier[-1] for head in heads)


class RuntimeSegmenter(RuntimeNetwork):
    """A segmenter that another program runs; if that takes one size, pictures are scaled to it, and the logits back.

    Args:
        network: The network that the other program runs.
        metadata: The metadata of its file.
    """

    def __init__(self, network: RuntimeNetwork, metadata: Mapping[str, str]) -> None:
        super().__init__(network.run, network.shape, network.how, probabilities=network.probabilities)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.shape[2:]
        if height is None or width is None or x.shape[2:] == (height, width):
            return super().forward(x)
        return F.interpolate(super().forward(scaled(x, (height, width))), x.shape[2:], mode="bilinear")


def create_segmenter(
    head: str,
    backbone: str,
    num_classes: int,
    *,
    auxiliary: bool = False,
    head_dim: int | None = None,
    arch: ArchOverrides | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    output_stride: int | None = None,
) -> Segmenter:
    """Builds a network for semantic segmentation, freshly initialised.

    Args:
        head: One of ``SEGMENTATION_HEADS``.
        backbone: Any timm model that returns feature maps.
        num_classes: Classes.
        auxiliary: Whether to add a second head, for the loss in training.
        head_dim: Width of the head; by default the paper's: 256, and 128 for ``semantic_fpn``.
        arch: Architecture choices; for a mobilemamba backbone only.
        in_chans: Channels of a picture.
        drop_path_rate: Stochastic depth of the backbone; 0.03 in the paper.
        output_stride: Stride of the coarsest map, for backbones whose last stages can be dilated instead.

    Raises:
        ConfigError: If an argument is unknown or does not fit the others.
    """
    check_choice("head", head, SEGMENTATION_HEADS)
    for name, value in (("num_classes", num_classes), ("head_dim", head_dim)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: expected 1 or more")
    extractor: Any = create_backbone(backbone, arch, in_chans, drop_path_rate, output_stride)
    channels: list[int] = extractor.feature_info.channels()
    strides: list[int] = extractor.feature_info.reduction()
    if auxiliary and len(channels) < 2:
        raise ConfigError(f"auxiliary=True: it reads the last map but one, and {backbone} gives one only; leave it out")
    width = {} if head_dim is None else {"dim": head_dim}
    neck: nn.Module | None = None
    if head in _ON_LAST_MAP:
        decoder = _ON_LAST_MAP[head](channels, num_classes, **width)
    else:
        levels = [level for level, stride in enumerate(strides) if stride >= _FINEST][-_LEVELS:]
        if len(levels) < 2:
            raise ConfigError(
                f"{head} joins 2 maps or more of stride {_FINEST} and above, and {backbone} gives {len(levels)}; "
                f"choose another backbone, or a head of: {', '.join(_ON_LAST_MAP)}"
            )
        neck = FPN([channels[level] for level in levels], _NECK_DIM)
        decoder = SemanticFPNHead(_NECK_DIM, [strides[level] for level in levels], num_classes, **width)
    segmenter = Segmenter(extractor, decoder, neck, AuxiliaryHead(channels, num_classes) if auxiliary else None)
    for module in (*segmenter.head.modules(), *(segmenter.auxiliary_head or nn.Identity()).modules()):
        if isinstance(module, ConvNorm):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
    return segmenter
