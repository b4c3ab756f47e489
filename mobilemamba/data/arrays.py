"""Conversion of lists from JSON to arrays, where any entry may have the wrong type."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def whole(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers of a list, (N,) int64, and which entries are integers, (N,) bool; others become 0."""
    good = np.array([type(value) is int and -(2**63) <= value < 2**63 for value in values], bool)
    return np.array([value if is_good else 0 for value, is_good in zip(values, good, strict=True)], np.int64), good


def numbers(values: Sequence[Any], width: int) -> np.ndarray:
    """Converts lists of ``width`` numbers to (N, width) float64; anything else becomes NaN."""
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
    """Returns the index of each wanted number among the known ones, or 0, and whether it is among them."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = known.argsort(kind="stable")
    at = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    found = known[at] == wanted
    return np.where(found, at, 0), found


def repeated(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns which values, (N,) bool, repeat an earlier one, considering only those at ``among``."""
    seen: set[Any] = set()
    again = np.zeros(len(values), bool)
    for n in np.flatnonzero(among):
        again[n] = values[n] in seen
        seen.add(values[n])
    return again
