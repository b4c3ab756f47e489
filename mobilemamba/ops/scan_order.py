"""The orders in which a feature map is scanned: rows forwards and backwards and, for four directions, columns too.

Shape letters: B batch, K scan directions, C channels, H and W sides, L = H * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError


@lru_cache(maxsize=64)  # pictures may come in thousands of sizes
def scan_order(directions: int, size: tuple[int, int]) -> Tensor:
    """Returns the positions of a map in the order in which each direction visits them; cached for the sizes in use.

    Args:
        directions: 1: rows (l = h W + w); 2: rows, rows backwards; 4: rows, columns (l = w H + h), and both backwards.
        size: (H, W).

    Returns:
        order_KL, int32, on the CPU: the row-major position of each step. Call it only inside operators: elsewhere the
        cache would keep a tracer's tensors.

    Raises:
        ConfigError: If ``directions`` is not 1, 2 or 4.
    """
    check_directions(directions)
    height, width = size
    rows = torch.arange(height * width, dtype=torch.int32, device="cpu").reshape(height, width)
    forwards = [rows.flatten()] if directions < 4 else [rows.flatten(), rows.T.flatten()]
    backwards = [order.flip(0) for order in forwards] if directions > 1 else []
    return torch.stack(forwards + backwards)


def check_directions(directions: int) -> None:
    """Checks that a scan order exists for a number of directions.

    Raises:
        ConfigError: If it is not 1, 2 or 4.
    """
    if directions not in (1, 2, 4):
        raise ConfigError(f"{directions} scan directions; expected 1, 2 or 4")


def by_step(x: Tensor, directions: int, size: Sequence[int]) -> Tensor:
    """Puts each direction's sequence in the order of its steps.

    It flips and transposes, because indices would have to be copied to the tensor's device.

    Args:
        x: (B, K, L, C) by position, or (B, L, C) if all directions share it.
        directions: K.
        size: (H, W) of a map; empty for sequences, which are already in order.

    Returns:
        x_LBKC, with time first.
    """
    x_BKLC = x if x.ndim == 4 else x[:, None].expand(-1, directions, -1, -1)
    x_LBKC = x_BKLC.permute(2, 0, 1, 3)
    if directions == 1 or not size:
        return x_LBKC
    sequences = list(x_LBKC.unbind(2))
    if directions == 4:
        sequences[1::2] = [_transpose(x, size[0], size[1]) for x in sequences[1::2]]
    half = directions // 2
    return torch.stack([*sequences[:half], *(x.flip(0) for x in sequences[half:])], 2)


def by_position(x_LBKC: Tensor, size: Sequence[int]) -> Tensor:
    """Puts each direction's steps back in their places, x_BKLC: the inverse of ``by_step``, and its transpose."""
    directions = x_LBKC.shape[2]
    if directions > 1 and size:
        half = directions // 2
        sequences = list(x_LBKC.unbind(2))
        sequences[half:] = [x.flip(0) for x in sequences[half:]]
        if directions == 4:
            sequences[1::2] = [_transpose(x, size[1], size[0]) for x in sequences[1::2]]
        x_LBKC = torch.stack(sequences, 2)
    return x_LBKC.permute(1, 2, 0, 3)


def _transpose(x_LBC: Tensor, height: int, width: int) -> Tensor:
    return x_LBC.unflatten(0, (height, width)).transpose(0, 1).flatten(0, 1)
