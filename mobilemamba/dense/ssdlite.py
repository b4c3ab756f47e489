"""SSDLite (Sandler et al., "MobileNetV2", 2018): depthwise heads on two maps and four coarser levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.dense.anchors import Anchors, default_boxes
from mobilemamba.dense.boxes import BACKGROUND, IGNORED, BoxCoder, assign, by_anchor
from mobilemamba.dense.release_names import SSDLITE, Names
from mobilemamba.dense.single_stage import SingleStageDetector
from mobilemamba.layers.conv_norm import ConvNorm

#: Strides of the levels, in pixels for any size of picture.
_STRIDES = (16, 32, 64, 107, 160, 320)
#: Sides of the default boxes: each level's own, and the next one's.
_SIDES = (48, 100, 150, 202, 253, 304, 320)


def _conv(in_chans: int, out_chans: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Returns a ConvNorm and a ReLU6."""
    conv = ConvNorm(in_chans, out_chans, kernel_size, stride, groups)
    conv.norm.eps, conv.norm.momentum = 1e-3, 0.03
    return [conv, nn.ReLU6()]


class ExtraLevels(nn.Module):
    """Adds four coarser levels to two maps, finer first, each from the one before: 1x1, depthwise of stride 2, 1x1.

    Args:
        in_chans: Channels of the coarser map.
        dim: Width; the new levels have 2, 1, 1 and 1/2 times as many channels.
    """

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.extras = nn.ModuleList()
        self.channels = (2 * dim, dim, dim, dim // 2)
        for out_chans in self.channels:
            half = out_chans // 2
            layers = _conv(in_chans, half) + _conv(half, half, 3, 2, half) + _conv(half, out_chans)
            self.extras.append(nn.Sequential(*layers))
            in_chans = out_chans
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.03)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = list(maps)
        for extra in self.extras:
            levels.append(extra(levels[-1]))
        return levels


class SSDLiteHead(nn.Module):
    """Applies depthwise 3x3 and 1x1 convolutions to each level, separate ones for each; outputs as torchvision's heads.

    Args:
        channels: Channels of each level.
        anchors: Boxes per cell.
        outputs: Logits per box.
    """

    def __init__(self, channels: Sequence[int], anchors: int, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.classes, self.codes = (
            nn.ModuleList(nn.Sequential(*_conv(c, c, 3, 1, c), nn.Conv2d(c, anchors * width, 1)) for c in channels)
            for width in (outputs, 4)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        classes = [branch(x) for branch, x in zip(self.classes, levels, strict=True)]
        codes = [branch(x) for branch, x in zip(self.codes, levels, strict=True)]
        return {"cls_logits": by_anchor(classes, self.outputs), "bbox_regression": by_anchor(codes, 4)}


class SSDLite(SingleStageDetector):
    """SSDLite; its logits are for the classes and, last, for the background, which torchvision has first.

    Default boxes have the sizes and steps of 320 px pictures, in pixels, for pictures of any size, as the authors' have
    for 512 px. Unlike torchvision's by default, they are not clipped to the picture.

    Args:
        backbone: Maps pictures to a list of maps.
        taken: Indices of the maps that are read, of stride 16 and 32.
        channels: Channels of those maps.
        num_classes: Classes without the background.
        dim: Width of the extra levels.
        options: Further options of :class:`~mobilemamba.dense.detector.Detector`.
    """

    release_names: Names = SSDLITE
    score_threshold = 0.02
    max_boxes = 200
    overlap = 0.45

    def __init__(
        self,
        backbone: nn.Module,
        taken: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        dim: int,
        **options: Any,
    ):
        boxes = [default_boxes(*level) for level in zip(_STRIDES, _SIDES[:-1], _SIDES[1:], strict=True)]
        anchors = Anchors(_STRIDES, boxes)
        neck = ExtraLevels(channels[-1], dim)
        head = SSDLiteHead((*channels, *neck.channels), anchors.per_cell, num_classes + 1)
        coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        super().__init__(backbone, neck, head, num_classes, anchors, coder, **{"divisor": 1, **options})
        self.taken = list(taken)

    def maps(self, images: Tensor) -> list[Tensor]:
        model: Any = self.backbone.model
        return model.forward_intermediates(images, indices=self.taken, stop_early=True, intermediates_only=True)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        branches: Any = self.head.classes
        return tuple(branch[-1] for branch in branches)

    def match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        return assign(anchors, boxes, positive=0.5, negative=0.5, ties=False)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums over all positives and, for each, the three negatives of the picture with the highest loss."""
        labels = labels.where(labels != BACKGROUND, self.num_classes)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        found = (labels >= 0) & (labels < self.num_classes)
        # All shapes are fixed, as the number of positives would make the host wait for a GPU. No loss is below 0.
        hardest = losses.masked_fill(labels != self.num_classes, 0).sort(1, descending=True).values
        rank = torch.arange(labels.shape[1], device=labels.device)
        hardest = hardest.masked_fill(rank >= 3 * found.sum(1, keepdim=True), 0)
        return losses.masked_fill(~found, 0).sum() + hardest.sum()

    def box_loss(self, codes: Tensor, expected: Tensor) -> Tensor:
        return F.smooth_l1_loss(codes, expected, reduction="sum")

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[..., :-1]
