"""Drawing on pictures: the colours of classes, boxes with names, legends, and panels side by side."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mobilemamba.text import shorten

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

_SIZE = 13  # font size in pixels
_LINE = 20
_GAP = 6
_FEW_LETTERS = 8
_LEAST_SIDE, _MOST_SIDE = 256, 2048  # pictures are enlarged up to these lengths of the shorter and the longer side
_BRIGHT = 140  # brightness of 255 above which text on a colour is black


def overlay(picture: Image.Image, classes_HW: Any, palette: Sequence[Colour], alpha: float = 0.5) -> Image.Image:
    """Blends a picture with the colours of its pixels' classes, in RGB.

    Args:
        picture: Picture of any mode.
        classes_HW: Integers in the picture's size; pixels whose class is not in the palette, such as those that do not
            count, are not coloured.
        palette: A colour for each class, red, green and blue in 0..255.
        alpha: Opacity of the colours, 0..1.

    Raises:
        ValueError: If the sizes differ.
    """
    classes_HW = np.asarray(classes_HW)
    if classes_HW.shape != (picture.height, picture.width):
        raise ValueError(f"classes {classes_HW.shape} for a picture of {(picture.height, picture.width)}: sizes differ")
    rgb_HW3 = np.array(picture.convert("RGB"))
    painted_HW = (classes_HW >= 0) & (classes_HW < len(palette))
    colours_M3 = np.asarray(palette, np.float32)[classes_HW[painted_HW]]
    rgb_HW3[painted_HW] = ((1 - alpha) * rgb_HW3[painted_HW] + alpha * colours_M3 + 0.5).astype(np.uint8)
    return Image.fromarray(rgb_HW3)


def draw_objects(
    picture: Image.Image,
    boxes: Sequence[Sequence[float]],
    names: Sequence[str],
    colours: Sequence[Colour],
    masks_NHW: Any = None,
) -> Image.Image:
    """Draws boxes with names, and optionally masks in their colours, on a picture, in RGB.

    A name is drawn above its box, or if another name is in the way, inside the box or at its lower edge. The middle of
    one that is wider than the picture is cut out.

    Args:
        picture: Picture of any mode.
        boxes: Left, top, right and bottom of each object in pixels.
        names: Name of each object, in any script.
        colours: Colour of each object, red, green and blue in 0..255.
        masks_NHW: A bool tensor of the picture's size for each object.
    """
    drawn = picture.convert("RGB")
    if masks_NHW is not None:
        for mask_HW, colour in zip(masks_NHW, colours, strict=True):
            drawn = overlay(drawn, np.where(np.asarray(mask_HW), 0, -1), [colour])
    draw = ImageDraw.Draw(drawn)
    thick = max(2, round(min(drawn.size) / 250))
    # Objects are sorted by descending score: the first name is placed first and drawn last.
    texts = [_fit(drawable(name, name.encode("ascii", "replace").decode()), drawn.width - 4) for name in names]
    places: list[Box] = []
    for box, text in zip(boxes, texts, strict=True):
        places.append(_place_of_name(box, _text_width(text) + 4, drawn.size, places))
    for box, colour in reversed([*zip(boxes, colours, strict=True)]):
        left, top, right, bottom = box
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=thick)
    for (x, y, x_end, y_end), text, colour in reversed([*zip(places, texts, colours, strict=True)]):
        draw.rectangle((x, y, x_end - 1, y_end - 1), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > _BRIGHT
        draw.text((x + 2, y), text, "black" if bright else "white", _font())
    return drawn


def enlargement(size: tuple[int, int]) -> int:
    """Returns the factor by which a picture of a size is enlarged, so that names do not hide a small one."""
    return max(1, min(-(-_LEAST_SIDE // min(size)), _MOST_SIDE // max(size)))


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """Repeats the pixels of a small picture, as often as its longer side stays within ``side`` pixels."""
    times = max(1, side // max(picture.size))
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


def _place_of_name(box: Sequence[float], width: int, size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Returns the position of a box's name in a picture, if possible without overlap with positions already taken."""
    left, top, right, bottom = box
    height = _LINE - 2
    columns = [max(0, min(x, size[0] - width)) for x in (left, right - width)]
    rows = [y for y in (top - height, top, bottom - height, bottom) if 0 <= y <= size[1] - height] or [max(0, top)]
    places = [(x, y, x + width, y + height) for y in rows for x in columns]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def legend(entries: Sequence[tuple[str, Colour]], width: int) -> Image.Image:
    """Draws a legend of names beside their colours, in as many columns as fit, on white.

    Args:
        entries: Names that are :func:`drawable`, and their colours.
        width: Width in pixels; a longer name makes the legend wider.
    """
    square = _LINE - _GAP
    column = max((_text_width(name) for name, _ in entries), default=0) + square + 3 * _GAP
    fit = max(1, (width - _GAP) // column)
    rows = [entries[start : start + fit] for start in range(0, len(entries), fit)]
    drawn = Image.new("RGB", (max(width, column + _GAP), len(rows) * _LINE + _GAP if rows else 0), "white")
    draw = ImageDraw.Draw(drawn)
    for row, named in enumerate(rows):
        for place, (name, colour) in enumerate(named):
            x, y = _GAP + place * column, _GAP + row * _LINE
            draw.rectangle((x, y, x + square - 1, y + square - 1), fill=colour, outline="black")
            draw.text((x + square + _GAP, y - 1), name, "black", _font())
    return drawn


def panels(pictures: Sequence[tuple[str, Image.Image]], lower: Image.Image | None = None) -> Image.Image:
    """Arranges pictures side by side, with a title above each and optionally a legend below, on white.

    Args:
        pictures: Titles, which may be empty, and pictures.
        lower: Picture to place below, e.g. a :func:`legend`.
    """
    top = _LINE if any(title for title, _ in pictures) else 0
    widths = [max(picture.width, _text_width(title)) for title, picture in pictures]
    width = sum(widths) + _GAP * (len(widths) - 1)
    height = top + max(picture.height for _, picture in pictures)
    below_width, below_height = lower.size if lower else (0, 0)
    drawn = Image.new("RGB", (max(width, below_width), height + below_height), "white")
    x = 0
    for (title, picture), own in zip(pictures, widths, strict=True):
        ImageDraw.Draw(drawn).text((x, 2), title, "black", _font())
        drawn.paste(picture, (x, top))
        x += own + _GAP
    if lower:
        drawn.paste(lower, (0, height))
    return drawn


def captioned(picture: Image.Image, lines: Sequence[str], colour: str = "black") -> Image.Image:
    """Adds lines of text in a colour, which must be :func:`drawable`, below a picture, on white."""
    width = max(picture.width, *(_text_width(line) + 2 * _GAP for line in lines))
    drawn = Image.new("RGB", (width, picture.height + len(lines) * _LINE + _GAP), "white")
    drawn.paste(picture)
    for row, line in enumerate(lines):
        ImageDraw.Draw(drawn).text((_GAP, picture.height + _GAP // 2 + row * _LINE), line, colour, _font())
    return drawn


def unnormalised(image_CHW: Any, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Returns the RGB picture of a network's input (3, H, W), which is normalised with ``mean`` and ``std``."""
    levels_HW3 = np.moveaxis(np.asarray(image_CHW, np.float32), 0, -1) * np.asarray(std) + np.asarray(mean)
    return Image.fromarray((255 * levels_HW3 + 0.5).clip(0, 255).astype(np.uint8))


def compare(
    picture: Image.Image,
    labels: Mapping[str, Any],
    names: Sequence[str],
    palette: Sequence[Colour],
    side: int = 320,
) -> Image.Image:
    """Draws a picture and classes of its pixels, such as the true and the predicted ones, side by side over a legend.

    Args:
        picture: Picture of any size.
        labels: Title -> classes (H, W) of the pixels, all of the same size; those without a name are not coloured.
        names: Names of the classes.
        palette: A colour for each class.
        side: Length of the longer side of each panel in pixels.
    """
    arrays = {title: np.asarray(labels_HW) for title, labels_HW in labels.items()}
    height, width = next(iter(arrays.values())).shape
    scale = side / max(height, width)
    size = tuple(max(1, round(length * scale)) for length in (width, height))
    shown = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    drawn = [("picture", shown)]
    for title, labels_HW in arrays.items():
        scaled = Image.fromarray(labels_HW.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        drawn.append((title, overlay(shown, np.asarray(scaled), palette, alpha=0.65)))
    present = np.unique(np.stack([*arrays.values()]))
    entries = [(drawable(names[i], f"class {i}"), palette[i]) for i in present.tolist() if 0 <= i < len(names)]
    return panels(drawn, legend(entries, panels(drawn).width))


def drawable(name: str, otherwise: str) -> str:
    """Returns a name in one line, or ``otherwise`` if the font lacks some of its letters."""
    name = " ".join(name.split())
    unknown = bytes(_font().getmask("\uffff"))
    return name if all(letter == " " or bytes(_font().getmask(letter)) != unknown for letter in name) else otherwise


def distinct_colours(number: int) -> tuple[Colour, ...]:
    """Returns distinct colours; neighbours in the list differ most, and the first ones are the same for any number.

    Each hue is the golden ratio of a turn further than the previous one, which keeps all hues apart; lightness and
    saturation alternate.
    """
    golden = (5**0.5 - 1) / 2
    tones = ((0.5, 0.85), (0.68, 0.7), (0.36, 0.7))
    colours = (hls_to_rgb(index * golden % 1, *tones[index % len(tones)]) for index in range(number))
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """Returns the font for text: matplotlib's, as Pillow's own has no accented letters."""
    package = str(getattr(find_spec("matplotlib"), "origin", None))
    return ImageFont.truetype(str(Path(package).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), _SIZE)


def _fit(text: str, width: int) -> str:
    """Shortens a text to a width in pixels, but not to less than a few letters."""
    lengths = range(len(text), min(len(text), _FEW_LETTERS) - 1, -1)
    shortened = (shorten(text, most) for most in lengths)
    return next((short for short in shortened if _text_width(short) <= width), shorten(text, _FEW_LETTERS))


def _text_width(text: str) -> int:
    return int(_font().getlength(text)) + 1
