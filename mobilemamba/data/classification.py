"""The base class of data modules for classification."""

from typing import Any

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Labels


class ImageDataModule(DataModule):
    """Base class of data modules for classification: pictures (B, 3, H, W) float32 and labels (B,) int64.

    Attributes:
        interpolation: Interpolation by which validation pictures are scaled.
        crop_pct: Their short side is scaled to ``img_size / crop_pct``, and the centre is cropped.
    """

    interpolation: str
    crop_pct: float
    form = Labels()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of validation pictures: img_size (h, w), mean, std, interpolation, crop_pct, upright."""
        return {**super().preprocessing, "interpolation": self.interpolation, "crop_pct": self.crop_pct}
