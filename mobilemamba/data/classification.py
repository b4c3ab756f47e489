"""What data sets of labelled pictures have in common."""

from typing import Any

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Labels


class ImageDataModule(DataModule):
    """Base of data modules for classification: batches of pictures (B, 3, H, W) float32 and labels (B,) int64.

    Attributes:
        interpolation: How validation pictures are scaled.
        crop_pct: Their short side is scaled to ``img_size / crop_pct``, and the centre cut out.
    """

    interpolation: str
    crop_pct: float
    form = Labels()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How validation pictures are prepared: img_size (h, w), mean, std, interpolation, crop_pct, upright."""
        return {**super().preprocessing, "interpolation": self.interpolation, "crop_pct": self.crop_pct}
