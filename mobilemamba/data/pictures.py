"""Reading a picture, whatever is in the file, and preparing it for a network."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from mobilemamba.errors import ConfigError, DataError
from mobilemamba.files import why_no_plain_file
from mobilemamba.text import printable

# Pillow's names of the formats that are read, and the endings of their files. No EPS among them, for which Pillow
# would start another program.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# Pillow has them only from some release on, or as it was built.
_ENDINGS |= {"AVIF": (".avif",)} if "avif" in features.modules and features.check("avif") else {}
_ENDINGS |= {"JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx")} if features.check("jpg_2000") else {}
_FORMATS = tuple(_ENDINGS)
#: Lower-case endings of the files that are taken for pictures.
EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
#: More pixels are refused: as 8-bit RGB they take over a quarter of a GiB. It is where Pillow begins to warn.
MAX_PIXELS = 89_478_485
#: One side may be so many times the other.
MAX_ASPECT = 1000

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values by which the sides change places
# Evaluation looks at the centre only: this much of a longer picture, as a multiple of what is looked at, is enough.
_CENTRE_MARGIN = 8


def read_picture(source: str | Path | IO[bytes], name: str | None = None, *, upright: bool = True) -> Image.Image:
    """Return a picture in RGB, 8 bits a channel.

    Of an animation the first frame; 16-bit grey is scaled to 8 bits; CMYK and palettes are converted; an alpha channel
    is dropped, which leaves the colours that lie under it.

    Args:
        source: A path, or an open file.
        name: How errors call it; by default the path.
        upright: Turn it as its EXIF orientation says; else it stays as it is stored.

    Raises:
        DataError: If it cannot be read to its end, or is too large (``MAX_PIXELS``) or too long (``MAX_ASPECT``).
    """
    try:
        return decode_picture(source, upright=upright)
    except DataError as error:
        raise refusal(str(name or source), error) from error.__cause__


def refusal(name: str, reason: DataError) -> DataError:
    """The error for a picture that :func:`decode_picture` gives a reason against."""
    return DataError(f"{printable(name)} cannot be read as a picture ({reason}): repair it or remove it")


def decode_picture(source: str | Path | IO[bytes], *, upright: bool) -> Image.Image:
    """As :func:`read_picture`, but the error is the bare reason.

    Raises:
        DataError: As there.
    """
    with open_picture(source) as picture:
        picture.load()
        if upright:
            with contextlib.suppress(Exception):  # damaged EXIF data are no reason to lose a picture
                ImageOps.exif_transpose(picture, in_place=True)
        return _to_rgb(picture)


@contextlib.contextmanager
def open_picture(source: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """A picture whose pixels are still to be read, in the block; its size is possible.

    Args:
        source: A path, or an open file.

    Raises:
        DataError: The bare reason why it cannot be read, also for whatever Pillow raises in the block.
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
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from error


def turned_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture once it is turned as its EXIF orientation says."""
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
    # Older releases of Pillow give 16-bit grey in 32 bits; those formats know no more than 16.
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        grey_HW = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535  # rounds; Pillow would saturate at 255
        return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")
    if mode.startswith(("I", "F")):
        raise DataError(f"pixels of mode {mode}, of which nothing says what is white; save it with 8 or 16 bits")
    if mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of the direct way, which gives the same colours
    return picture.convert("RGB")


def _is_empty(source: str | Path | IO[bytes]) -> bool:
    if isinstance(source, str | Path):
        return Path(source).stat().st_size == 0
    source.seek(0)
    return not source.read(1)


@dataclass(frozen=True)
class Augmentation:
    """timm's random changes of training pictures.

    Attributes:
        scale: Area of a random crop, least and largest share of the picture.
        ratio: Width to height of a random crop, least and largest.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of the change of brightness, contrast and saturation; not used with ``auto_augment``.
        auto_augment: timm's policy, e.g. ``rand-m9-mstd0.5-inc1``; null for none.
        re_prob: Probability of random erasing.
        re_mode: What random erasing fills with: zeros, one random colour, or random pixels.
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.3
    auto_augment: str | None = None
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"


def train_transform(
    img_size: tuple[int, int],
    augmentation: Augmentation,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
) -> Callable[[Image.Image], Tensor]:
    """Return what makes a normalised, randomly changed (3, H, W) float32 of a picture; it draws from global streams.

    Args:
        img_size: Height and width in pixels.
        augmentation: The random changes.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.
        interpolation: Of the scaling: ``"bilinear"``, ``"bicubic"``, or one of both at ``"random"``.

    Raises:
        ConfigError: If ``auto_augment`` is no policy of timm.
    """
    try:
        return create_transform(
            (img_size[0], img_size[1]),
            is_training=True,
            mean=mean,
            std=std,
            interpolation=interpolation,
            **vars(augmentation),
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"data.augmentation.auto_augment {augmentation.auto_augment!r} is not one of timm's policies ({error}): "
            "give for example rand-m9-mstd0.5-inc1, or null"
        ) from error


def eval_transform(
    img_size: tuple[int, int],
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
) -> Callable[[Image.Image], Tensor]:
    """Return what makes a normalised (3, H, W) float32 of a picture's centre; takes what ``preprocessing`` names.

    Args:
        img_size: Height and width in pixels.
        mean: Per channel, of pictures in 0..1.
        std: Per channel, of pictures in 0..1.
        interpolation: Of the scaling.
        crop_pct: The short side is scaled to ``img_size / crop_pct``, and the centre cut out.
    """
    transform = create_transform(
        (img_size[0], img_size[1]),
        is_training=False,
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
    )
    return _Centred(transform, _CENTRE_MARGIN * max(img_size) // min(img_size))


class _Centred:
    """Shortens very long pictures first: scaled whole they would take a thousand times the memory of what is used."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], aspect: int) -> None:
        self.transform = transform
        self.aspect = aspect

    def __call__(self, picture: Image.Image) -> Tensor:
        width, height = picture.size
        longest = self.aspect * min(width, height)
        if max(width, height) > longest:
            left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
            picture = picture.crop((left, top, min(width, left + longest), min(height, top + longest)))
        return self.transform(picture)
