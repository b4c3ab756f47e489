"""Feature maps to scan sequences and back: along rows forwards and backwards, and along columns for four directions.

Shape letters: B batch, K scan directions, D channels, H and W sides, L = H * W.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_scan(x_BDHW: Tensor, directions: int) -> Tensor:
    """The sequences of a feature map.

    Args:
        x_BDHW: Feature map.
        directions: 1: rows (l = h W + w); 2: rows, rows backwards; 4: rows, columns (l = w H + h), and both backwards.

    Returns:
        x_BKDL, contiguous.
    """
    rows = x_BDHW.flatten(2)
    if directions == 1:
        return rows.unsqueeze(1).contiguous()
    forwards = [rows] if directions == 2 else [rows, x_BDHW.transpose(2, 3).flatten(2)]
    x_BKDL = torch.stack(forwards, dim=1)
    return torch.cat([x_BKDL, x_BKDL.flip(-1)], dim=1)


def cross_merge(y_BKDL: Tensor, size: tuple[int, int]) -> Tensor:
    """Puts each sequence's values back in their place and adds them: the transpose of ``cross_scan``.

    Args:
        y_BKDL: Sequences as ``cross_scan`` orders them.
        size: (H, W) with H * W = L.

    Returns:
        y_BDL, row-major.
    """
    directions = y_BKDL.shape[1]
    if directions == 1:
        return y_BKDL[:, 0]
    y_BKDL = y_BKDL[:, : directions // 2] + y_BKDL[:, directions // 2 :].flip(-1)
    if directions == 2:
        return y_BKDL[:, 0]
    height, width = size
    columns = y_BKDL[:, 1].unflatten(-1, (width, height)).transpose(2, 3).flatten(2)
    return y_BKDL[:, 0] + columns
