"""What data sets whose targets are the classes of pixels have in common."""

from typing import Any

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Masks
from mobilemamba.drawing import Colour


class SegmentationDataModule(DataModule):
    """Base of data modules for segmentation: pictures (B, 3, H, W) float32 and the classes of pixels (B, H, W) int64.

    Pixels that do not count are :data:`~mobilemamba.data.batches.IGNORED_PIXEL`. In training all pictures and masks are
    of ``img_size``. In an evaluation a mask is of its picture's own size, and the picture perhaps not.

    Attributes:
        palette: A colour for each class, in the order of the labels, red, green and blue in 0..255.
        interpolation: How pictures are scaled: ``bilinear``.
        antialias: Whether pixels are averaged where a picture is scaled down.
    """

    palette: tuple[Colour, ...]
    form = Masks()
    interpolation: str = "bilinear"
    antialias: bool = True

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How validation pictures are prepared: img_size (h, w), mean, std, interpolation, antialias, upright.

        Their shorter side becomes that of ``img_size``, and nothing is cut off, see
        :func:`~mobilemamba.data.segmentation_transforms.eval_transform`.
        """
        return {**super().preprocessing, "interpolation": self.interpolation, "antialias": self.antialias}
