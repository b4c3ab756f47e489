"""Masks of objects in COCO's formats: polygons, or run-length encoding (RLE), plain or compressed into a string.

Input is checked: faster-coco-eval, which fills polygons, would use all memory for one far outside its picture.
"""

import math
from array import array
from typing import Any

import numpy as np

from mobilemamba.errors import ConfigError, DataError

_POLYGONS, _RUNS, _PACKED = b"prt"
_LEAST = 6  # smallest number of coordinates of a polygon


def mask_library() -> Any:
    """Returns faster-coco-eval's module of functions for masks.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise ConfigError(
            "masks and COCO's metric need faster-coco-eval: install it by pip install 'mobilemamba[detection]'"
        ) from error
    return mask


def pack(segmentation: Any) -> bytes:
    """Packs a segmentation of COCO's JSON into a few bytes; empty if there is none.

    Raises:
        DataError: If it is no valid segmentation; the message is only the reason.
    """
    if not segmentation:
        return b""
    try:
        if isinstance(segmentation, dict):
            size, counts = segmentation["size"], segmentation["counts"]
            head = array("I", size)
            if len(head) != 2:
                raise ValueError
            if isinstance(counts, str):
                return bytes([_PACKED]) + head.tobytes() + counts.encode("ascii")
            return bytes([_RUNS]) + head.tobytes() + array("I", counts).tobytes()
        lengths = [len(polygon) for polygon in segmentation]
        numbers = array("d", [len(lengths), *lengths])
        for polygon in segmentation:
            numbers.extend(array("d", polygon))
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise DataError("its segmentation is neither polygons nor runs with their size") from error
    if min(lengths) < _LEAST or any(length % 2 for length in lengths):
        raise DataError(f"its segmentation has a polygon of {min(lengths)} numbers: three points or more make one")
    if not math.isfinite(sum(numbers)):
        raise DataError("its segmentation has numbers that are not finite")
    return bytes([_POLYGONS]) + numbers.tobytes()


def unpack(packed: bytes, height: int, width: int) -> np.ndarray:
    """Returns the mask (H, W) bool of a segmentation packed by :func:`pack`, for a picture of H x W pixels.

    Raises:
        DataError: If the mask has another size; the message is only the reason.
    """
    if not packed:
        return np.zeros((height, width), bool)
    kind, content = packed[0], packed[1:]
    if kind == _POLYGONS:
        return _fill(np.frombuffer(content), height, width)
    size, runs = np.frombuffer(content[:8], np.uint32), content[8:]
    counts = np.frombuffer(runs, np.uint32) if kind == _RUNS else _unpacked_runs(runs)
    if tuple(size) != (height, width) or counts.sum(dtype=np.int64) != height * width or counts.min(initial=0) < 0:
        raise DataError(
            f"its segmentation is of {size[1]} x {size[0]} pixels, in runs of {counts.sum(dtype=np.int64):,}, in a "
            f"picture of {width} x {height}"
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask (H, W) bool as compressed RLE for COCO's JSON: ``size``, and ``counts`` as a string."""
    packed = mask_library().encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode("ascii")}


def _fill(numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    lengths = numbers[1 : 1 + int(numbers[0])].astype(int)
    xy = numbers[1 + len(lengths) :].reshape(-1, 2).clip((-width, -height), (2 * width, 2 * height))
    polygons = np.split(xy.ravel(), lengths.cumsum()[:-1])
    library = mask_library()
    runs = library.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return library.decode(library.merge(runs)).astype(bool)


def _unpacked_runs(text: bytes) -> np.ndarray:
    """Decodes run lengths: 5 bits per character minus 48, lowest first; from the fourth on, relative to two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        if shift > 30:
            raise DataError("its segmentation has runs that are no packed numbers")
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= 1 << shift if bits & 16 else 0
            counts.append(min(value + (counts[-2] if len(counts) > 2 else 0), 2**31))
            value = shift = 0
    return np.array(counts, np.int64)
