"""What data sets whose targets are the classes of pixels have in common."""

from colorsys import hls_to_rgb
from typing import Any

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Masks

Colour = tuple[int, int, int]


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


def distinct_colours(number: int) -> tuple[Colour, ...]:
    """Colours that differ, neighbours in the list most; the first ones are the same for any number.

    Each hue is a golden section of the circle further than the last, which keeps all hues apart; lightness and
    saturation change in turn.
    """
    golden = (5**0.5 - 1) / 2
    tones = ((0.5, 0.85), (0.68, 0.7), (0.36, 0.7))
    colours = (hls_to_rgb(index * golden % 1, *tones[index % len(tones)]) for index in range(number))
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours)
