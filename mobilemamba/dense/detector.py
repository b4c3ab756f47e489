"""What detectors have in common: a backbone of timm's, a neck, losses, and boxes found in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mobilemamba.dense.network import DenseNetwork

#: Height and width of each picture of a batch.
Sizes = Tensor | Sequence[tuple[int, int]]


class Detector(DenseNetwork):
    """Boxes in pictures (B, in_chans, H, W), which are normalised, and padded at the right and below.

    ``forward`` gives what the heads say, for an export; ``losses`` and ``detect`` what a training and a user want.
    Boxes are (x1, y1, x2, y2) in pixels of the picture as it stands in the batch, labels count from 0.

    Args:
        backbone: Pictures to a list of maps, of :func:`~mobilemamba.dense.backbone.create_backbone`.
        neck: Maps to the levels that heads read, the finest first.
        num_classes: Classes, background not counted.
        frozen_norms: Keep the running statistics of the backbone's BatchNorms in training; their weights train.
        divisor: Sides of pictures are padded to multiples of it; of a training's anchors those count whose cells begin
            within their picture padded so.

    Raises:
        ConfigError: If pictures are too small, or in training too few for the norms.
    """

    #: Of a detection: the lowest score, exclusive; the number of boxes of a picture at most; and the overlap with a
    #: better box of its class that is too much.
    score_threshold: float
    max_boxes: int
    overlap: float

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
        """The losses of a batch by name, scalars; a training takes their sum.

        Args:
            images: (B, in_chans, H, W).
            targets: Of each picture ``boxes`` (N, 4), ``labels`` (N,), ``iscrowd`` (N,) if some are crowds, which are
                not to be found, and ``size`` (height, width) of it without the padding; ``masks`` (N, h, w) for those
                that find masks.
        """
        raise NotImplementedError

    def detect(self, images: Tensor, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        """What is found in each picture, best first: ``boxes`` (n, 4), ``scores`` and ``labels`` (n,).

        Args:
            images: (B, in_chans, H, W).
            sizes: Height and width of each without its padding, which boxes are clipped to; by default all of it.
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
        """The backbone's maps, the finest first."""
        return self.backbone(images)

    def levels(self, images: Tensor) -> list[Tensor]:
        """The levels that heads read, the finest first."""
        with self.suiting(images):
            return self.neck(self.maps(images))

    def sizes(self, images: Tensor, sizes: Sizes | None) -> list[tuple[int, int]]:
        """Height and width of each picture, as numbers."""
        if sizes is None:
            return [(images.shape[-2], images.shape[-1])] * len(images)
        given = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        return [(int(height), int(width)) for height, width in given]

    def padded(self, target: Mapping[str, Any], images: Tensor) -> tuple[int, int]:
        """Height and width of a target's picture, padded by itself."""
        if "size" not in target:
            return images.shape[-2], images.shape[-1]
        return padded(target["size"], self.divisor)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """The layers that have outputs for each class; timm's name for what a new number of classes replaces."""
        raise NotImplementedError

    def start_afresh(self, classifier: nn.Module) -> None:
        """Leaves what other classes take the place of as it was built: a focal loss begins at rare boxes, not at 0."""


def padded(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """The next height and width that a divisor divides."""
    height, width = (-(-int(side) // divisor) * divisor for side in size)
    return height, width
