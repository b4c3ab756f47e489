"""Measures of a receptive field's map, all independent of the scale of the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Fractions of the map's mass, as in RepLKNet's table.
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


def contribution_ratios(
    map: np.ndarray,  # noqa: A002 - what it is
    centre: tuple[float, float],
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """Returns the area of the smallest centred square with more than t of the mass, as a fraction of the picture.

    This is the high-contribution area ratio of Ding et al., "Scaling Up Your Kernels to 31x31" (RepLKNet), 2022, but
    about the cell's true centre: sides are odd, or even if the centre lies between pixels, and the part of a square
    outside the picture does not count.

    Args:
        map: (H, W); absolute values are used.
        centre: Row and column in pixels, from 0.
        thresholds: t, each below 1.

    Returns:
        (T,) float64 in 0..1; NaN for a map without mass.
    """
    sides = contribution_sides(map, centre, thresholds)
    rows, columns = (_inside(length, at, sides / 2) for length, at in zip(map.shape, centre, strict=True))
    return np.where(np.isnan(sides), np.nan, (rows[1] - rows[0]) * (columns[1] - columns[0]) / map.size)


def contribution_sides(
    map: np.ndarray,  # noqa: A002
    centre: tuple[float, float],
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """Returns the sides (T,) in pixels of the squares of :func:`contribution_ratios`, which may exceed the picture."""
    total = np.zeros([side + 1 for side in map.shape])
    total[1:, 1:] = np.abs(map).cumsum(0).cumsum(1)
    distances = [np.abs(np.arange(length) - at) for length, at in zip(map.shape, centre, strict=True)]
    halves = np.unique(np.concatenate(distances)) + 0.5
    (top, bottom), (left, right) = (_inside(length, at, halves) for length, at in zip(map.shape, centre, strict=True))
    mass = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    if not total[-1, -1] > 0:
        return np.full(len(thresholds), np.nan)
    index = np.searchsorted(mass, np.multiply(thresholds, total[-1, -1]), side="right")
    return 2 * halves[np.minimum(index, len(halves) - 1)]


def superlevel_areas(map: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:  # noqa: A002
    """Returns the smallest fraction (T,) of pixels that contain t of the mass: the strongest ones, at any position."""
    falling = np.sort(np.abs(map), axis=None)[::-1].cumsum()
    if not falling[-1] > 0:
        return np.full(len(thresholds), np.nan)
    return (np.searchsorted(falling, np.multiply(thresholds, falling[-1])) + 1) / map.size


def share_beyond(map: np.ndarray, centre: tuple[float, float], radii: Sequence[float]) -> np.ndarray:  # noqa: A002
    """Returns the fraction (R,) of the mass that is further from the centre than each radius in pixels."""
    squares = [(np.arange(length) - at) ** 2 for length, at in zip(map.shape, centre, strict=True)]
    distance = np.sqrt(squares[0][:, None] + squares[1])
    mass = np.abs(map)
    return np.array([mass[distance > radius].sum() for radius in radii]) / (mass.sum() or np.nan)


def _inside(length: int, at: float, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first pixel, and one after the last, within a distance of ``halves`` of a position on an axis."""
    halves = np.nan_to_num(halves)
    first, last = np.ceil(at - halves), np.floor(at + halves)
    return first.clip(0, length).astype(int), (last + 1).clip(0, length).astype(int)
