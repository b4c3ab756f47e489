import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilemamba.data.masks import ClassList, decode_mask, read_class_list
from mobilemamba.errors import DataError

COLOURED = "road 128 64 128\nignored 0 0 0\ntraffic light, 250, 170, 30\nsky #4682b4\n"


def classes(folder: Path, text: str, ignore: int | None = 255) -> ClassList:
    (folder / "classes.txt").write_text(text)
    return read_class_list(folder / "classes.txt", ignore)


def saved(folder: Path, picture: Image.Image, name: str = "mask.png") -> str:
    picture.save(folder / name)
    return str(folder / name)


def grey_png(path: Path, rows: list[bytes], width: int, bits: int) -> str:
    """A grey PNG of few bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return str(path)


def test_list_of_names(tmp_path: Path) -> None:
    found = classes(tmp_path, "background\ntraffic light\nroute 66\n\n")
    assert found.names == ("background", "traffic light", "route 66")
    assert found.colours is None
    assert found.values[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, -1, 255]


def test_list_with_colours_and_what_is_ignored(tmp_path: Path) -> None:
    found = classes(tmp_path, COLOURED)
    assert found.names == ("road", "traffic light", "sky")
    assert found.colours == ((128, 64, 128), (250, 170, 30), (70, 130, 180))
    assert found.values[:5].tolist() == [0, 255, 1, 2, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky 1 2 3\nroad", "no colour for 'road'"),
        ("sky\nsky", "the class sky twice"),
        ("sky 1 2 3\nroad 1 2 3", r"the colour \(1, 2, 3\) twice"),
        ("sky 1 2 300\nroad 1 2 3", "line 1: 1 2 300 is no colour"),
        ("sky\n\nroad", "line 2: expected the name"),
        ("sky", "has 1 classes"),
        ("\n".join(map(str, range(256))), "has 256 classes"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"classes\.txt.*{message}"):
        classes(tmp_path, text)


def test_missing_and_binary_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read \(No such file"):
        read_class_list(tmp_path / "none.txt", 255)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="no UTF-8 text"):
        read_class_list(tmp_path / "classes.txt", 255)


def test_ignoring_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.ignore 1 is the number of the class 'road'"):
        classes(tmp_path, "sky\nroad", ignore=1)


NUMBERS = np.array([[0, 1, 2], [255, 2, 1]])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "palette", "equal channels", "with alpha", "tiff"])
def test_numbers(tmp_path: Path, kind: str) -> None:
    picture = Image.fromarray(NUMBERS.astype(np.uint16 if kind == "uint16" else np.uint8))
    if kind == "palette":
        picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0] + [7] * 759)
    elif kind == "equal channels":
        picture = picture.convert("RGB")
    elif kind == "with alpha":
        picture = picture.convert("LA")
    path = saved(tmp_path, picture, "mask.tiff" if kind == "tiff" else "mask.png")
    labels = decode_mask(path, classes(tmp_path, "a\nb\nc"))
    assert labels.dtype == np.uint8
    assert labels.tolist() == NUMBERS.tolist()


@pytest.mark.parametrize(
    ("bits", "rows", "expected"),
    [(1, [b"\x40"], [[0, 1, 0, 0]]), (2, [b"\x1b"], [[0, 1, 2, 3]]), (4, [b"\x01\x23"], [[0, 1, 2, 3]])],
)
def test_numbers_of_few_bits_are_not_stretched(
    tmp_path: Path, bits: int, rows: list[bytes], expected: list[list[int]]
) -> None:
    path = grey_png(tmp_path / "mask.png", rows, 4, bits)
    assert decode_mask(path, classes(tmp_path, "a\nb\nc\nd")).tolist() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours(tmp_path: Path, mode: str) -> None:
    colours = np.array([[[128, 64, 128], [70, 130, 180]], [[0, 0, 0], [250, 170, 30]]], np.uint8)
    picture = Image.fromarray(colours)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    assert decode_mask(saved(tmp_path, picture), classes(tmp_path, COLOURED)).tolist() == [[0, 2], [255, 1]]


def test_a_foreign_colour_in_a_palette_does_not_make_its_indices_numbers(tmp_path: Path) -> None:
    """As programs that shrink PNGs write coloured masks, with a palette in any order."""
    colours, known = np.array([[[70, 130, 180], [128, 64, 128], [9, 8, 7]]], np.uint8), classes(tmp_path, COLOURED)
    with pytest.raises(DataError, match="colour #090807 is no colour of the class list, in 1 of its 3 pixels"):
        decode_mask(saved(tmp_path, Image.fromarray(colours).quantize(3)), known)
    own = Image.fromarray(np.array([[0, 2, 255]], np.uint8))
    own.putpalette([128, 64, 128, 0, 0, 0, 250, 170, 30] + [224, 224, 192] * 253)  # as Pascal VOC's, whose 255 is void
    assert decode_mask(saved(tmp_path, own), known).tolist() == [[0, 1, 255]]


def test_a_class_list_with_colours_takes_numbers_too(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    assert decode_mask(saved(tmp_path, picture), classes(tmp_path, COLOURED)).tolist() == [[0, 255], [1, 2]]


def test_black_and_white_are_colours_of_the_list(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 255]], np.uint8))
    assert decode_mask(saved(tmp_path, picture), classes(tmp_path, "no 0 0 0\nyes 255 255 255")).tolist() == [[0, 1]]


@pytest.mark.parametrize(("dtype", "expected"), [(np.uint8, [[1, 0]]), (np.uint16, [[0, 1]])])
def test_grey_of_eight_bits_may_be_colours_and_of_sixteen_is_numbers(
    tmp_path: Path, dtype: type, expected: list[list[int]]
) -> None:
    picture = Image.fromarray(np.array([[0, 1]], dtype))
    assert decode_mask(saved(tmp_path, picture), classes(tmp_path, "no 1 1 1\nyes 0 0 0")).tolist() == expected


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(np.array([[0, 3], [1, 3]], np.uint8)), "value 3 is of none of the 2 classes, in 2 of its 4"),
        (Image.fromarray(np.array([[0, 40000]], np.uint16)), "value 40000 is of none of the 2 classes"),
        (Image.new("RGB", (2, 2), (9, 8, 7)), "in colours, but the class list has none"),
    ],
)
def test_pixels_of_no_class_are_refused(tmp_path: Path, picture: Image.Image, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_mask(saved(tmp_path, picture), classes(tmp_path, "a\nb"))


def test_a_foreign_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colour #090807 is no colour of the class list, in 4 of its 4 pixels"):
        decode_mask(saved(tmp_path, Image.new("RGB", (2, 2), (9, 8, 7))), classes(tmp_path, COLOURED))


def test_files_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    known = classes(tmp_path, "a\nb")
    whole = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8)))
    content = Path(whole).read_bytes()
    for name, bad, message in [
        ("empty.png", b"", "an empty file"),
        ("short.png", content[: len(content) // 2], "truncated"),
        ("text.png", b"hello there", "of no known picture format"),
    ]:
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(DataError, match=message):
            decode_mask(str(tmp_path / name), known)
    lossy = saved(tmp_path, Image.new("L", (8, 8)), "mask.jpg")
    with pytest.raises(DataError, match="a JPEG, which may change a pixel's number"):
        decode_mask(lossy, known)
    floating = saved(tmp_path, Image.new("F", (8, 8)), "mask.tiff")
    with pytest.raises(DataError, match="mode F"):
        decode_mask(floating, known)
