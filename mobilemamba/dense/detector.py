"""Base class of detectors: a timm backbone, a neck, losses, and the boxes found in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilemamba.dense.network import DenseNetwork

#: Height and width of each picture of a batch.
Sizes = Tensor | Sequence[tuple[int, int]]


class Detector(DenseNetwork):
    """Finds boxes in pictures (B, in_chans, H, W), which are normalised, and padded at the right and bottom.

    ``forward`` returns the heads' outputs, for an export; ``losses`` serves training, and ``detect`` users. Boxes are
    (x1, y1, x2, y2) in pixels of the picture as it is in the batch; labels count from 0.

    Args:
        backbone: Maps pictures to a list of maps, see :func:`~mobilemamba.dense.backbone.create_backbone`.
        neck: Maps the list of maps to the levels that heads read, the finest first.
        num_classes: Classes without the background.
        frozen_norms: Whether the backbone's BatchNorms keep their running statistics in training; their weights train.
        divisor: Sides of pictures are padded to multiples of this; training uses only anchors whose cells begin within
            their picture padded in this way.

    Raises:
        ConfigError: If pictures are too small or, in training, too few for the norms.
    """

    score_threshold: float  # detections have a score above this
    max_boxes: int  # the most detections per picture
    overlap: float  # largest intersection over union of a detection with a better one of its class

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        num_classes: int,
        *,
        frozen_norms: bool = True,
        divisor: int = 32,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.num_classes = num_classes
        self.frozen_norms = frozen_norms
        self.divisor = divisor

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns the losses of a batch by name, as scalars; training minimises their sum.

        Args:
            images: (B, in_chans, H, W).
            targets: For each picture: ``boxes`` (N, 4), ``labels`` (N,), ``iscrowd`` (N,) if there are crowds, which
                need not be found, and ``size``, its height and width without padding; for networks that find masks also
                ``masks`` (N, h, w).
        """
        raise NotImplementedError

    def detect(self, images: Tensor, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        """Returns the detections in each picture, best first: ``boxes`` (n, 4), ``scores`` and ``labels`` (n,).

        Args:
            images: (B, in_chans, H, W).
            sizes: Height and width of each picture without its padding, to which boxes are clipped; by default the full
                size.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        if self.frozen_norms:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Returns the backbone's maps, the finest first."""
        return self.backbone(images)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Returns the levels that heads read, the finest first."""
        with self.refusing_unsuitable(images):
            return self.neck(self.maps(images))

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Returns the layers with outputs for each class, to be replaced for other classes; the name is timm's."""
        raise NotImplementedError

    def start_afresh(self, classifier: nn.Module) -> None:
        """Leaves a classifier for new classes as initialised: a focal loss must start from rare boxes, not from 0."""


def sizes_of(images: Tensor, sizes: Sizes | None) -> list[tuple[int, int]]:
    """Returns height and width of each picture as integers; None for the full size."""
    if sizes is None:
        return [(images.shape[-2], images.shape[-1])] * len(images)
    given = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in given]


def sizes_of_targets(images: Tensor, targets: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Returns the ``size`` of each target; the full size for those without. Waits for the device once at most."""
    given = [torch.as_tensor(target.get("size", images.shape[-2:]), device=images.device) for target in targets]
    return sizes_of(images, torch.stack(given))


def padded(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """Returns height and width rounded up to multiples of a divisor."""
    height, width = (-(-int(side) // divisor) * divisor for side in size)
    return height, width
