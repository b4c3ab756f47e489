"""Colours over pictures, legends and panels: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image

from mobilemamba.drawing import drawable, legend, overlay, panels

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_classes_are_mixed_with_the_picture_and_what_is_none_of_them_stays():
    grey = Image.new("L", (4, 1), 100)
    drawn = np.asarray(overlay(grey, [[0, 1, 255, -1]], [RED, BLUE], alpha=0.25))
    assert drawn.tolist() == [[[139, 75, 75], [75, 75, 139], [100] * 3, [100] * 3]]


@pytest.mark.parametrize(("alpha", "colour"), [(0, (7, 8, 9)), (1, BLUE)])
def test_the_extremes_are_the_picture_and_the_colours(alpha, colour):
    picture = Image.new("RGB", (3, 2), (7, 8, 9))
    assert overlay(picture, np.ones((2, 3), np.uint8), [RED, BLUE], alpha).getcolors() == [(6, colour)]


def test_classes_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\) for a picture of \(2, 3\): sizes differ"):
        overlay(Image.new("RGB", (3, 2)), np.zeros((3, 2), np.uint8), [RED])


def colours_of(picture):
    return {colour for _, colour in picture.getcolors(1 << 16)}


def test_a_legend_shows_every_entry_within_its_width():
    entries = [(f"class {n}", (10 * n, 200, 255 - 10 * n)) for n in range(20)]
    drawn = legend(entries, 300)
    assert drawn.width == 300
    assert colours_of(drawn) >= {colour for _, colour in entries}
    assert legend(entries, 100).height > drawn.height > legend(entries, 1000).height
    long = legend([("a name longer than the picture is wide", RED)], 40)
    assert long.width > 200
    assert np.asarray(long)[:, -20:].min() < 128  # its last letters are there
    assert legend([], 50).size == (50, 0)


def test_panels_stand_side_by_side_above_the_legend():
    red, blue = Image.new("RGB", (60, 50), RED), Image.new("RGB", (40, 70), BLUE)
    lower = Image.new("RGB", (30, 9), (1, 2, 3))
    drawn = np.asarray(panels([("one", red), ("two", blue)], lower))
    for colour, box in (
        (RED, (0, 20, 60, 70)),
        (BLUE, (66, 20, 106, 90)),
        ((1, 2, 3), (0, 90, 30, 99)),
    ):
        ys, xs = np.nonzero((drawn == colour).all(-1))
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == box
    assert panels([("", red)]).size == (60, 50)
    assert panels([("a title longer than its picture", red)]).width > 60


def test_names_in_letters_that_cannot_be_drawn_have_a_stand_in():
    assert drawable("crème\n brûlée, łódź, дом, Ω", "class 3") == "crème brûlée, łódź, дом, Ω"
    assert drawable("寿司", "class 3") == "class 3"
