"""Arrays of what a JSON holds, where each entry may be something else."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def whole(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64, and which of them are whole numbers."""
    good = np.array([type(value) is int and -(2**63) <= value < 2**63 for value in values], bool)
    return np.array([value if is_good else 0 for value, is_good in zip(values, good, strict=True)], np.int64), good


def numbers(values: Sequence[Any], width: int) -> np.ndarray:
    """(N, width) float64 of lists; NaN where one is something else."""
    try:
        found = np.array(values, np.float64)
        if found.shape == (len(values), width):
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    if len(values) < 2:
        return np.full((len(values), width), np.nan)
    return np.concatenate([numbers([value], width) for value in values])


def find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each wanted number among the known ones, 0 for none, and whether it is one of them."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = known.argsort(kind="stable")
    at = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    found = known[at] == wanted
    return np.where(found, at, 0), found


def repeated(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which are those of an earlier one."""
    seen: set[Any] = set()
    again = np.zeros(len(values), bool)
    for n in np.flatnonzero(among):
        again[n] = values[n] in seen
        seen.add(values[n])
    return again
