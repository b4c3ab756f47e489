"""The orders in which a feature map is scanned: rows forwards and backwards, and columns for four directions.

Shape letters: B batch, K scan directions, C channels, H and W sides, L = H * W.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError


def scan_order(directions: int, size: tuple[int, int]) -> Tensor:
    """The positions of a map in the order in which each direction visits them.

    Args:
        directions: 1: rows (l = h W + w); 2: rows, rows backwards; 4: rows, columns (l = w H + h), and both backwards.
        size: (H, W).

    Returns:
        order_KL, int32, on the CPU: the row-major position of each step.

    Raises:
        ConfigError: If there is no such number of directions.
    """
    check_directions(directions)
    height, width = size
    rows = torch.arange(height * width, dtype=torch.int32, device="cpu").reshape(height, width)
    forwards = [rows.flatten()] if directions < 4 else [rows.flatten(), rows.T.flatten()]
    backwards = [order.flip(0) for order in forwards] if directions > 1 else []
    return torch.stack(forwards + backwards)


def check_directions(directions: int) -> None:
    """That there is an order for each.

    Raises:
        ConfigError: If there is no such number of directions.
    """
    if directions not in (1, 2, 4):
        raise ConfigError(f"{directions} scan directions; expected 1, 2 or 4")


#: ``scan_order``, computed once. For the inside of operators alone: elsewhere a tracer's tensors would be kept.
kept_scan_order = cache(scan_order)


def cross_scan(x_BKCL: Tensor, order_KL: Tensor) -> Tensor:
    """Puts each direction's sequence, which stands by position, in the order of its steps."""
    return x_BKCL.gather(-1, _index(order_KL, x_BKCL))


def cross_merge(y_BKCL: Tensor, order_KL: Tensor) -> Tensor:
    """Puts each sequence's steps back in their place and adds the directions, (B, C, L): ``cross_scan``'s transpose."""
    position_KL = torch.argsort(order_KL, dim=-1)
    return y_BKCL.gather(-1, _index(position_KL, y_BKCL)).sum(1)


def _index(index_KL: Tensor, x_BKCL: Tensor) -> Tensor:
    return index_KL.to(x_BKCL.device, torch.int64)[None, :, None].expand_as(x_BKCL)
