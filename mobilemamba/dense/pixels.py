"""From logits to the class of each pixel at any size, a few rows of pixels at a time, as all at once may not fit.

On a CPU all rows would not fit in the cache either: for 150 classes at 512 px, bands of rows take half the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mobilemamba.dense.pooled import resize

_BAND = 1 << 19  # elements that are computed at a time on a CPU
_WIDE_BAND = 1 << 24  # and elsewhere

Size = tuple[int, int]


def likeliest(logits: Tensor, *sizes: Size) -> Tensor:
    """Returns the most probable class of each pixel, (B, H, W) int64, of logits scaled to each of the sizes in turn.

    Args:
        logits: (B, classes, h, w).
        sizes: Heights and widths; the last one is that of the result.
    """
    return torch.cat([band_BHWC.argmax(-1) for band_BHWC in _bands(logits, sizes)], 1)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross entropy of each pixel, (B, H, W) float32, of logits scaled to the size of the targets.

    Args:
        logits: (B, classes, h, w).
        targets: (B, H, W) int64; the result is meaningless where they are no class.
    """
    found, top = [], 0
    for band_BHWC in _bands(logits, [(targets.shape[-2], targets.shape[-1])]):
        rows, classes = band_BHWC.shape[1], band_BHWC.shape[3]
        labels_BHW1 = targets[:, top : top + rows, :, None].clamp(0, classes - 1)
        found.append(band_BHWC.logsumexp(-1) - band_BHWC.gather(-1, labels_BHW1)[..., 0])
        top += rows
    return torch.cat(found, 1)


def _bands(logits: Tensor, sizes: Sequence[Size]) -> Iterator[Tensor]:
    """Yields rows of the scaled logits from top to bottom, (B, rows, W, classes) float32."""
    maps_BHWC, batch, classes = logits.permute(0, 2, 3, 1), len(logits), logits.shape[1]
    height, width = sizes[-1]
    rows = max(1, (_BAND if logits.device.type == "cpu" else _WIDE_BAND) // (batch * width * classes))
    for top in range(0, height, rows):
        yield _rows(maps_BHWC, sizes, top, min(top + rows, height))


def _rows(maps_BHWC: Tensor, sizes: Sequence[Size], top: int, bottom: int) -> Tensor:
    """Returns rows ``top`` to ``bottom`` of maps scaled to each of the sizes in turn, in float32."""
    if not sizes:
        return maps_BHWC[:, top:bottom].float()
    *before, (height, width) = sizes
    height_before, width_before = before[-1] if before else maps_BHWC.shape[1:3]
    if height == height_before:
        scaled_BHWC = _rows(maps_BHWC, before, top, bottom)
    else:
        scale = height_before / height
        first, last = (max(0, int((row + 0.5) * scale - 0.5)) for row in (top, bottom - 1))
        part_BHWC = _rows(maps_BHWC, before, first, min(last + 2, height_before))
        place_H = ((torch.arange(top, bottom, device=maps_BHWC.device) + 0.5) * scale - 0.5).clamp(min=0) - first
        upper_H = place_H.long()
        between_H11 = (place_H - upper_H)[:, None, None]
        lower_H = (upper_H + 1).clamp(max=part_BHWC.shape[1] - 1)
        upper_H = upper_H.clamp(max=part_BHWC.shape[1] - 1)  # if rounding put it beyond the last row
        scaled_BHWC = part_BHWC[:, upper_H].lerp(part_BHWC[:, lower_H], between_H11)
    if width == width_before:
        return scaled_BHWC
    scaled_BCHW = resize(scaled_BHWC.permute(0, 3, 1, 2), (bottom - top, width))
    return scaled_BCHW.permute(0, 2, 3, 1)
