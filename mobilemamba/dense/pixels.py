"""From logits to the class of each pixel at any size, a few classes at a time: all of them at once may not fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mobilemamba.dense.pooled import resize

_MOST = 1 << 24  # numbers at a time


def likeliest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel, (B, H, W) int64, of logits (B, classes, h, w) that are scaled to (H, W)."""
    best, answer = None, None
    for first, part in _at_size(logits, size):
        value, index = part.max(1)
        if best is None or answer is None:
            best, answer = value, index
            continue
        better = value > best  # of equal ones the first
        best, answer = torch.where(better, value, best), torch.where(better, first + index, answer)
    assert answer is not None
    return answer


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of each pixel, (B, H, W) float32, of logits (B, classes, h, w) that are scaled to the targets.

    Args:
        logits: Of any size.
        targets: (B, H, W) int64; where they are no classes, the result means nothing.
    """
    total, right = None, torch.zeros(targets.shape, device=logits.device)
    for first, part in _at_size(logits, (targets.shape[-2], targets.shape[-1])):
        whole = part.logsumexp(1)
        total = whole if total is None else torch.logaddexp(total, whole)
        place = targets - first
        inside = (place >= 0) & (place < part.shape[1])
        found = part.gather(1, place.clamp(0, part.shape[1] - 1)[:, None])[:, 0]
        right = torch.where(inside, found, right)
    assert total is not None
    return total - right


def _at_size(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """The logits of some classes, (B, c, H, W) float32, and the first of these."""
    step = max(1, _MOST // (len(logits) * size[0] * size[1]))
    for first in range(0, logits.shape[1], step):
        part = logits[:, first : first + step].float()
        yield first, part if part.shape[-2:] == size else resize(part, size)
