"""Sliding windows and test-time augmentation for segmenters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.dense.network import SMALLEST
from mobilemamba.dense.pooled import resize
from mobilemamba.errors import ConfigError


class SlidingWindow(nn.Module):
    """Runs on windows of a picture, one after the other, and averages the logits where they overlap.

    Activations then do not grow with the picture, and the network sees no more at a time than it was trained on. The
    last windows of a row and of a column end at the picture's border; a picture no larger than a window is processed as
    a whole.

    Args:
        network: Maps pictures (B, in_chans, H, W) to logits (B, classes, H, W).
        window: Side of a window in pixels.
        stride: Distance from one window to the next; by default two thirds of the side.

    Raises:
        ConfigError: If ``window`` or ``stride`` is impossible.
    """

    def __init__(self, network: nn.Module, window: int = 512, stride: int | None = None):
        super().__init__()
        if window < SMALLEST:
            raise ConfigError(f"window={window}: expected {SMALLEST} px or more")
        self.network, self.window, self.stride = network, window, window * 2 // 3 if stride is None else stride
        if not 1 <= self.stride <= window:
            raise ConfigError(f"stride={stride}: expected 1 to {window} px, the window's side, or pixels are left out")

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        spots = [(rows, columns) for rows in self._spans(height) for columns in self._spans(width)]
        if len(spots) == 1:
            return self.network(x)
        total, looks_HW = None, x.new_zeros(height, width)
        for rows, columns in spots:
            logits = self.network(x[..., rows, columns])
            if total is None:  # channels last, for the fastest argmax over classes
                batch, classes = logits.shape[:2]
                total = logits.new_zeros(batch, height, width, classes).permute(0, 3, 1, 2)
            total[..., rows, columns] += logits
            looks_HW[rows, columns] += 1
        assert total is not None
        return total.div_(looks_HW)

    def _spans(self, length: int) -> Iterator[slice]:
        for start in range(0, max(1, length - self.window + self.stride), self.stride):
            end = min(start + self.window, length)
            yield slice(max(0, end - self.window), end)


class Views(nn.Module):
    """Test-time augmentation: averages a network's probabilities over scaled and flipped views of a picture.

    Args:
        network: Maps pictures (B, in_chans, H, W) to logits (B, classes, H, W).
        scales: Sizes of the views relative to the picture; no view is smaller than a segmenter accepts.
        flip: Whether to add a mirrored view of each.
        antialias: Whether scaling down averages pixels, as it did in training.
    """

    def __init__(
        self,
        network: nn.Module,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        antialias: bool = True,
    ):
        super().__init__()
        self.network, self.scales, self.flip, self.antialias = network, tuple(scales), flip, antialias

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logarithms of the probabilities, which are valid logits, (B, classes, H, W)."""
        size = x.shape[-2:]
        total: Tensor | None = None
        for view, mirrored in self._views(x):
            probabilities = resize(self.network(view), size).float().softmax(1)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        views = len(self.scales) * (1 + self.flip)
        return total.div_(views).clamp_(min=torch.finfo(total.dtype).tiny).log_()

    def _views(self, x: Tensor) -> Iterator[tuple[Tensor, bool]]:
        for scale in self.scales:
            size = [max(SMALLEST, int(side * scale + 0.5)) for side in x.shape[-2:]]
            antialias = self.antialias and scale < 1
            view = F.interpolate(x, size, mode="bilinear", antialias=antialias) if scale != 1 else x
            yield view, False
            if self.flip:
                yield view.flip(-1), True


def look_closely(network: nn.Module, window: int | None = None, tta: bool = False, antialias: bool = True) -> nn.Module:
    """Makes a segmenter use windows of a picture, several views of it, or both; returns it unchanged for neither.

    Args:
        network: Maps pictures (B, in_chans, H, W) to logits (B, classes, H, W).
        window: Side of the windows of :class:`SlidingWindow`.
        tta: Whether to use :class:`Views`.
        antialias: The option of :class:`Views`.

    Raises:
        ConfigError: If the window is too small.
    """
    if window is not None:
        network = SlidingWindow(network, window)
    return Views(network, antialias=antialias) if tta else network
