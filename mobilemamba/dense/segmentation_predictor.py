"""Predictor for segmenters: the class of each pixel, the area of each class, and drawings of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from mobilemamba.dense.pixels import likeliest
from mobilemamba.dense.segmenter import Segmenter
from mobilemamba.dense.views import look_closely
from mobilemamba.drawing import drawable, legend, overlay, panels
from mobilemamba.errors import ConfigError
from mobilemamba.models.predictor import LABELS, Predictor, Row

_MOST_CLASSES = 256  # that the pixels of a palette's picture can name


class CoarseLogits(NamedTuple):
    """The outputs of a network before they are scaled to the size of the pictures."""

    logits: Tensor  # (B, classes, h, w)
    size: tuple[int, int]  # height and width of the prepared pictures


class SegmentationPredictor(Predictor):
    """Returns the class of each pixel, and the classes by area, the largest first.

    Rows are ``{"classes": [{"index", "name", "pixels", "share"}, ...], LABELS: (H, W) uint8}``.
    """

    columns = ("rank", "index", "class", "pixels", "share")
    batch_size = 1
    default_topk = None

    def preparation(self, how: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Returns the function that prepares whole pictures, scaled to the shorter side of the card's size."""
        from mobilemamba.data.segmentation_transforms import eval_transform  # imports torchvision, which takes long

        del how["crop_pct"]
        return eval_transform(**how)

    def look_closely(self, window: int | None, tta: bool) -> None:
        self.network = look_closely(self.network, window, tta, self.card.preprocessing.antialias)
        self.how += f", in windows of {window} px" if window else ""
        self.how += ", averaged over 12 views" if tta else ""

    def ask(self, x: Tensor) -> CoarseLogits:
        """Leaves the logits unscaled on a CPU: only the classes are needed, which are found a few rows at a time."""
        network, size = self.network, (x.shape[-2], x.shape[-1])
        if isinstance(network, Segmenter) and x.device.type == "cpu":
            return CoarseLogits(network.coarse_logits(x), size)
        return CoarseLogits(network(x), size)

    def rows(self, outputs: CoarseLogits, sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """Returns the rows for logits, scaled to each picture's own size, see :meth:`Predictor.rows`."""
        prepared = outputs.size
        sizes = [prepared] * len(outputs.logits) if sizes is None else sizes
        found = (likeliest(logits[None], prepared, size)[0] for logits, size in zip(outputs.logits, sizes, strict=True))
        return [self._row(labels.cpu().numpy().astype(np.uint8)) for labels in found]

    def _row(self, labels_HW: np.ndarray) -> Row:
        pixels = np.bincount(labels_HW.ravel(), minlength=self.card.num_classes)
        largest = sorted(np.flatnonzero(pixels).tolist(), key=lambda index: -pixels[index])[: self.topk]
        classes = [
            {
                "index": index,
                "name": self.names[index],
                "pixels": int(pixels[index]),
                "share": round(float(pixels[index] / labels_HW.size), 6),
            }
            for index in largest
        ]
        return {"classes": classes, LABELS: labels_HW}

    def lines(self, row: Row) -> list[list[Any]]:
        return [
            [rank, entry["index"], entry["name"], entry["pixels"], entry["share"]]
            for rank, entry in enumerate(row["classes"], 1)
        ]

    def draw(self, picture: Image.Image, row: Row) -> Image.Image:
        """Draws the colours of the classes over the picture, and a legend of those that the row names."""
        drawn = overlay(picture, row[LABELS], self.palette)
        entries = []
        for entry in row["classes"]:
            index = entry["index"]
            name = drawable(entry["name"], f"class {index}")
            entries.append((f"{name} {entry['share']:.1%}", self.palette[index]))
        return panels([("", drawn)], legend(entries, drawn.width))

    def drawings(self, picture: Image.Image, row: Row) -> dict[str, Image.Image]:
        """Adds ``_labels``: a picture with classes as pixel values, which shows their colours."""
        labels = Image.fromarray(row[LABELS]).copy()
        labels.putpalette(np.asarray(self.palette, np.uint8).tobytes())
        return {**super().drawings(picture, row), "_labels": labels}

    def check(self) -> None:
        """Also refuses networks with more classes than pixel values can name; see :meth:`Predictor.check`."""
        super().check()
        if self.card.num_classes > _MOST_CLASSES:
            raise ConfigError(f"the network has {self.card.num_classes:,} classes; a pixel names one of 256 at most")
