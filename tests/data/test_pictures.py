import io
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilemamba.data.pictures import MAX_PIXELS, open_picture, read_picture, turned_size
from mobilemamba.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(height: int = 40, width: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so; its data are of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def test_rgb_stays_what_it_is(tmp_path: Path) -> None:
    noise().save(tmp_path / "x.png")
    for source in (tmp_path / "x.png", str(tmp_path / "x.png"), io.BytesIO((tmp_path / "x.png").read_bytes())):
        assert np.array_equal(pixels(read_picture(source)), np.asarray(noise()))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257], [32767, 32896, 65406, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert Image.open(tmp_path / f"x.{suffix}").mode in ("I;16", "I"), "older Pillow's mode of such a PNG is I"
    read = pixels(read_picture(tmp_path / f"x.{suffix}"))
    assert np.array_equal(read[..., 0], [[0, 0, 1, 1], [127, 128, 254, 255]])  # 65535 / 255 = 257 to a step, rounded
    assert np.array_equal(read[..., 0], np.round(values / 257))
    assert np.array_equal(read[..., 0], read[..., 2])


def test_big_endian_sixteen_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], ">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 65535\n" + values.tobytes())
    assert pixels(read_picture(tmp_path / "x.pgm"))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x.tif cannot be read .*pixels of mode [IF].*8 or 16 bits"):
        read_picture(tmp_path / "x.tif")


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    assert np.abs(pixels(read_picture(tmp_path / "x.jpg")).astype(int) - RED).max() < 4


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_alpha_is_dropped_without_a_warning(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (4, 4), (*RED, 255))
    picture.putpixel((1, 2), (*BLUE, 0))
    picture.convert(mode).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").has_transparency_data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = pixels(read_picture(tmp_path / "x.png"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert np.array_equal(read, expected)
    if mode == "RGBA":
        assert tuple(read[2, 1]) == BLUE


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert getattr(Image.open(tmp_path / "x.gif"), "n_frames", 1) == 3
    assert (pixels(read_picture(tmp_path / "x.gif")) == RED).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((32, 16, 3), np.uint8)
    upright[:8, :8] = 255  # white at the top left
    # What a camera stores for each orientation, by the definition of the first row and column in EXIF.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x.{suffix}"
    Image.fromarray(stored).save(file, exif=exif, quality=95)
    for turned, expected in ((True, upright), (False, stored)):
        read = pixels(read_picture(file, upright=turned)).astype(int)
        assert read.shape == expected.shape
        assert np.abs(read - expected).mean() < 8
    with open_picture(file) as opened:
        assert turned_size(opened) == (16, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_lose_no_picture(tmp_path: Path) -> None:
    noise().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert pixels(read_picture(tmp_path / "x.jpg")).shape == (40, 50, 3)


@pytest.mark.parametrize("size", [(20_001, 20), (20, 20_001)])
def test_a_longer_one_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x.png .*\(.*20,001.* one side more than 1,000 times the other\)"):
        read_picture(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_460, 14_000, 50_000, 2**31 - 1])  # Pillow alone warns up to 13,377
@pytest.mark.parametrize("limited", [True, False])
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, limited: bool
) -> None:
    if not limited:  # as some programs set it for all
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "x.png").write_bytes(png_of_size(side, side))
    with pytest.raises(DataError, match=rf"x.png cannot .*\(.*more than {MAX_PIXELS:,}") as caught:
        read_picture(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"These are words.\n" * 50, "of no known picture format"),
        (EPS, "of no known picture format"),  # Pillow would start Ghostscript
        (jpeg()[: len(jpeg()) // 2], "truncated"),
        (jpeg()[:100], ".+"),
        (jpeg()[:2], "of no known picture format"),
        (png_of_size(30, 30), ".+"),
    ],
    ids=["empty", "text", "eps", "half", "header", "two bytes", "png without pixels"],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(content)
    for source, name in ((file, None), (io.BytesIO(content), "inside/x.jpg")):
        with pytest.raises(
            DataError, match=rf"x.jpg cannot be read as a picture \(.*{reason}.*\): repair it or"
        ) as caught:
            read_picture(source, name)
        assert str(caught.value).startswith(name or str(file))
        assert str(caught.value).count("x.jpg") == 1
        assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match=r"cannot be read as a picture \((No such file|a folder)"):
            read_picture(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_files_are_opened(tmp_path: Path, kind: str) -> None:
    """The others may keep whoever reads them waiting for ever."""
    path = tmp_path / "x.png"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind(str(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=rf"x.png cannot be read as a picture \(a {kind}\): repair it"):
        read_picture(path)
