"""The base class of data modules for segmentation."""

from typing import Any

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Masks
from mobilemamba.drawing import Colour


class SegmentationDataModule(DataModule):
    """Base class of data modules for segmentation: pictures (B, 3, H, W) float32 and pixel classes (B, H, W) int64.

    Pixels that do not count are :data:`~mobilemamba.data.batches.IGNORED_PIXEL`. In training, all pictures and masks
    have ``img_size``. In evaluations, pictures are scaled, while masks keep their original size.

    Attributes:
        palette: A colour for each class, in the order of the labels, red, green and blue in 0..255.
        interpolation: Interpolation of the scaling: ``bilinear``.
        antialias: Whether to antialias pictures that are scaled down.
    """

    palette: tuple[Colour, ...]
    form = Masks()
    interpolation: str = "bilinear"
    antialias: bool = True

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of validation pictures: img_size (h, w), mean, std, interpolation, antialias, upright.

        Their shorter side is scaled to that of ``img_size``, and nothing is cropped, see
        :func:`~mobilemamba.data.segmentation_transforms.eval_transform`.
        """
        return {**super().preprocessing, "interpolation": self.interpolation, "antialias": self.antialias}
