"""Mask files, which give the class of each pixel of a picture by a number or a colour."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.pictures import open_picture
from mobilemamba.errors import DataError
from mobilemamba.text import printable

# Formats that store pixels unchanged.
_FORMATS = ("PNG", "BMP", "TIFF")
_GREY = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow stretches grey levels of 2 and 4 bits to 0..255, by these factors.
_STRETCHED = {"L;2": 85, "L;4": 17}
_LINE = re.compile(r"(?P<name>.*?)(?:[\s,;:]+(?P<rgb>\d+[\s,;]+\d+[\s,;]+\d+)|[\s,;:]+#(?P<hex>[0-9a-fA-F]{6}))?")
#: Name in a class list for pixels that do not count.
IGNORED_NAME = "ignored"
_MOST = 65536  # number of possible values in a mask


class ClassList(NamedTuple):
    """The classes of masks, as given by a class list; the numbers in a mask are line numbers, from 0.

    Attributes:
        names: Names of the classes.
        colours: Colours of the classes, red, green and blue in 0..255; None if the list has none.
        values: (65536,) int16, the label for each number in a mask, ``IGNORED_PIXEL``, or -1 if it has no class.
        codes: (K,) sorted, the colours that may occur in a mask, as 0xRRGGBB; K is 0 without colours.
        labels: (K,) int16, the labels of these colours, or ``IGNORED_PIXEL``.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] | None
    values: np.ndarray
    codes: np.ndarray
    labels: np.ndarray


def class_list(lines: list[tuple[str, tuple[int, int, int] | None]], ignore: int | None) -> ClassList:
    """Builds a class list from names and colours; the name ``ignored`` is for pixels that do not count.

    Args:
        lines: Name and colour for the numbers 0, 1, ... in a mask; either all have a colour or none.
        ignore: Another number for pixels that do not count.
    """
    labels = itertools.count()
    of_line = [IGNORED_PIXEL if name == IGNORED_NAME else next(labels) for name, _ in lines]
    kept = [line for line in lines if line[0] != IGNORED_NAME]
    values = np.full(_MOST, -1, np.int16)
    values[: len(lines)] = of_line
    if ignore is not None:
        values[ignore] = IGNORED_PIXEL
    known = sorted((_code(*colour), label) for (_, colour), label in zip(lines, of_line, strict=True) if colour)
    return ClassList(
        tuple(name for name, _ in kept),
        tuple(colour for _, colour in kept if colour) if known else None,
        values,
        np.array([code for code, _ in known], np.int32),
        np.array([label for _, label in known], np.int16),
    )


def read_class_list(file: Path, ignore: int | None) -> ClassList:
    """Reads a class list with a name and perhaps a colour in each line: ``sky 70 130 180`` or ``sky #4682b4``.

    Raises:
        DataError: If the file cannot be read, or is no valid list.
    """
    shown = printable(file)
    try:
        texts = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(
            f"{shown} cannot be read ({reason}): write one class a line into it, in the order of their numbers in the "
            "masks, with a colour if the masks are coloured, e.g. 'sky 70 130 180'"
        ) from error
    while texts and not texts[-1]:
        texts.pop()
    lines = [_parse(text, f"{shown}, line {number}") for number, text in enumerate(texts, 1)]
    coloured = [colour for _, colour in lines if colour]
    names = [name for name, _ in lines if name != IGNORED_NAME]
    if coloured and len(coloured) < len(lines):
        bare = next(name for name, colour in lines if not colour)
        raise DataError(f"{shown} gives no colour for '{bare}': give all of its lines one, or none")
    for kind, given in (("the class", names), ("the colour", coloured)):
        if twice := next((item for n, item in enumerate(given) if item in given[:n]), None):
            raise DataError(f"{shown} has {kind} {twice} twice: each line needs its own")
    if not 2 <= len(names) <= IGNORED_PIXEL:
        raise DataError(f"{shown} has {len(names)} classes: a segmentation takes 2 to {IGNORED_PIXEL}, one a line")
    if ignore is not None and ignore < len(lines) and lines[ignore][0] != IGNORED_NAME:
        raise DataError(
            f"data.ignore {ignore} is the number of the class '{lines[ignore][0]}' in {shown}: name that line "
            f"'{IGNORED_NAME}', or give another number or null"
        )
    return class_list(lines, ignore)


def decode_mask(path: str, classes: ClassList) -> np.ndarray:
    """Reads a mask and returns the label of each pixel, (H, W) uint8, ``IGNORED_PIXEL`` for those that do not count.

    Grey pictures of 1 to 16 bits and palette pictures are read as numbers, unless all their colours are in the class
    list, or the list gives a palette's colours other numbers; colour pictures are read as colours.

    Raises:
        DataError: If the file is incomplete or unreadable, or a pixel has no class; the message is only the reason.
    """
    with open_picture(path) as picture:
        if picture.format not in _FORMATS:
            raise DataError(f"a {picture.format}, which may change a pixel's number: save it as a PNG")
        tiles = getattr(picture, "tile", [])
        stretched = _STRETCHED.get(str(tiles[0].args), 1) if tiles else 1
        picture.load()
        numbers_HW, codes_HW, in_palette = None, None, picture.mode == "P"
        if picture.mode in _GREY:
            numbers_HW = np.asarray(picture if picture.mode != "LA" else picture.getchannel(0)) // np.int32(stretched)
        elif picture.mode not in ("RGB", "RGBA"):
            raise DataError(f"pixels of mode {picture.mode}, which stand for no classes: save it as a PNG")
        if numbers_HW is None or (len(classes.codes) and not picture.mode.startswith("I")):
            codes_HW = _codes(picture)
    if codes_HW is not None and len(classes.codes):
        labels_HW = _by_colour(codes_HW, classes)
        known_HW = labels_HW >= 0
        if numbers_HW is None or known_HW.all() or (in_palette and _differ(labels_HW, numbers_HW, known_HW, classes)):
            return _checked(labels_HW, codes_HW, "colour #{:06x}", "no colour of the class list")
    elif codes_HW is not None:
        numbers_HW = codes_HW & 255  # numbers saved in three equal channels
        if (codes_HW != numbers_HW * 0x010101).any():
            raise DataError("a mask in colours, but the class list has none: add them, e.g. 'sky 70 130 180'")
    assert numbers_HW is not None  # None only for masks in colours, which were handled above
    outside_HW = (numbers_HW < 0) | (numbers_HW >= len(classes.values))
    labels_HW = np.where(outside_HW, -1, classes.values[np.where(outside_HW, 0, numbers_HW)])
    return _checked(labels_HW, numbers_HW, "value {}", f"of none of the {len(classes.names)} classes")


def _parse(text: str, where: str) -> tuple[str, tuple[int, int, int] | None]:
    found = _LINE.fullmatch(text)
    if found is None or not found["name"]:
        raise DataError(f"{where}: expected the name of a class and perhaps its colour, e.g. 'sky 70 130 180'")
    numbers = re.findall(r"\d+", found["rgb"] or "") or list(bytes.fromhex(found["hex"] or ""))
    if not numbers:
        return printable(found["name"]), None
    red, green, blue = map(int, numbers)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: {red} {green} {blue} is no colour: its numbers are 0 to 255")
    return printable(found["name"]), (red, green, blue)


def _code(red: int, green: int, blue: int) -> int:
    return red << 16 | green << 8 | blue


def _codes(picture: Image.Image) -> np.ndarray:
    """Returns the colours as 0xRRGGBB, (H, W) int32; transparent pixels have their underlying colour."""
    has_alpha = picture.mode == "P" and "transparency" in picture.info  # Pillow warns if this is converted directly
    rgb_HW3 = np.asarray((picture.convert("RGBA") if has_alpha else picture).convert("RGB"), np.int32)
    return rgb_HW3[..., 0] << 16 | rgb_HW3[..., 1] << 8 | rgb_HW3[..., 2]


def _by_colour(codes_HW: np.ndarray, classes: ClassList) -> np.ndarray:
    at_HW = np.searchsorted(classes.codes, codes_HW).clip(max=len(classes.codes) - 1)
    return np.where(classes.codes[at_HW] == codes_HW, classes.labels[at_HW], -1)


def _differ(labels_HW: np.ndarray, numbers_HW: np.ndarray, among_HW: np.ndarray, classes: ClassList) -> bool:
    return bool((classes.values[numbers_HW[among_HW]] != labels_HW[among_HW]).any())


def _checked(labels_HW: np.ndarray, found_HW: np.ndarray, name: str, why: str) -> np.ndarray:
    strange_HW = labels_HW < 0
    if strange_HW.any():
        first = name.format(int(found_HW[strange_HW][0]))
        raise DataError(f"{first} is {why}, in {int(strange_HW.sum()):,} of its {labels_HW.size:,} pixels")
    return labels_HW.astype(np.uint8)
