"""Robust reading of picture files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from mobilemamba.errors import DataError
from mobilemamba.files import why_no_plain_file
from mobilemamba.text import printable

# Pillow's names of the formats that are read, and their file extensions. Not EPS, for which Pillow would start another
# program.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# Depends on Pillow's version and build.
_ENDINGS |= {"AVIF": (".avif",)} if "avif" in features.modules and features.check("avif") else {}
_ENDINGS |= {"JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx")} if features.check("jpg_2000") else {}
_FORMATS = tuple(_ENDINGS)
#: Lower-case extensions of files that are read as pictures.
EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
#: Limit of pixels, at which Pillow begins to warn: as 8-bit RGB they take a quarter of a GiB.
MAX_PIXELS = 89_478_485
#: Limit of the ratio of the longer to the shorter side.
MAX_ASPECT = 1000

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height


def read_picture(source: str | Path | IO[bytes], name: str | None = None, *, upright: bool = True) -> Image.Image:
    """Reads a picture as RGB with 8 bits per channel.

    Only the first frame of an animation is read; 16-bit grey is scaled to 8 bits; CMYK and palettes are converted; an
    alpha channel is dropped, which leaves the underlying colours.

    Args:
        source: Path or open file.
        name: Name in error messages; by default the path.
        upright: Rotate the picture by its EXIF orientation.

    Raises:
        DataError: If it is unreadable or incomplete, too large (``MAX_PIXELS``) or too long (``MAX_ASPECT``).
    """
    try:
        return decode_picture(source, upright=upright)
    except DataError as error:
        raise refusal(str(name or source), error) from error.__cause__


def refusal(name: str, reason: DataError) -> DataError:
    """Returns the error for a picture that :func:`decode_picture` could not read, with its reason."""
    return DataError(f"{printable(name)} cannot be read as a picture ({reason}): repair it or remove it")


def decode_picture(source: str | Path | IO[bytes], *, upright: bool) -> Image.Image:
    """Reads a picture like :func:`read_picture`, but errors contain only the reason.

    Raises:
        DataError: In the same cases.
    """
    with open_picture(source) as picture:
        picture.load()
        if upright:
            with contextlib.suppress(Exception):  # damaged EXIF data should not make a picture unusable
                ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)


@contextlib.contextmanager
def open_picture(source: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Context manager of an open picture whose size has been checked and whose pixels are not read yet.

    Args:
        source: Path or open file.

    Raises:
        DataError: If it cannot be read, also for any error of Pillow in the block; the message is only the reason.
    """
    try:
        if isinstance(source, str | Path) and (reason := why_no_plain_file(source)):
            raise DataError(reason)
        with Image.open(source, formats=_FORMATS) as picture:
            _check_sides(*picture.size)
            yield picture
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("an empty file" if _is_empty(source) else "of no known picture format") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {MAX_PIXELS:,} pixels, the limit") from error
    except OSError as error:
        raise DataError(error.strerror or " ".join(str(error).split())) from error
    except Exception as error:  # for a broken file, Pillow's decoders may raise anything
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from error


def turned_size(picture: Image.Image) -> tuple[int, int]:
    """Returns width and height of an open picture after rotation by its EXIF orientation."""
    with contextlib.suppress(Exception):  # damaged EXIF data
        if picture.getexif().get(_ORIENTATION) in _TURNED:
            return picture.height, picture.width
    return picture.size


def _check_sides(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,}, the limit")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width:,} x {height:,} pixels, one side more than {MAX_ASPECT:,} times the other")


def _to_rgb(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    # Older versions of Pillow return 16-bit grey as 32 bits; these formats have at most 16.
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        grey_HW = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535  # rounds; Pillow would saturate at 255
        return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")
    if mode.startswith(("I", "F")):
        raise DataError(f"pixels of mode {mode}, of which nothing says what is white; save it with 8 or 16 bits")
    if mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of the direct conversion, which gives the same colours
    return picture.convert("RGB")


def _is_empty(source: str | Path | IO[bytes]) -> bool:
    if isinstance(source, str | Path):
        return Path(source).stat().st_size == 0
    source.seek(0)
    return not source.read(1)
