"""Colours over pictures, legends and panels: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image

from mobilemamba.drawing import (
    captioned,
    compare,
    draw_objects,
    drawable,
    enlarged,
    legend,
    overlay,
    panels,
    unnormalised,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_classes_are_mixed_with_the_picture_and_what_is_none_of_them_stays():
    grey = Image.new("L", (4, 1), 100)
    drawn = np.asarray(overlay(grey, [[0, 1, 2, -1]], [RED, BLUE], alpha=0.25))
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


def test_a_caption_stands_below_its_picture_and_widens_it_if_need_be():
    red = Image.new("RGB", (300, 50), RED)
    drawn = captioned(red, ["  9.1%  crème brûlée", " 90.9%  шапка"])
    assert drawn.crop((0, 0, 300, 50)).getcolors() == [(15000, RED)]
    for top in (50, 70):
        line = np.asarray(drawn)[top : top + 20, ..., 0]
        assert drawn.width == 300
        assert line.min() < 128
    narrow = captioned(red.resize((9, 9)), ["a line longer than its picture is wide"])
    assert narrow.width > 200
    assert np.asarray(narrow)[9:, -20:].min() < 128  # its last letters are there


def test_names_in_letters_that_cannot_be_drawn_have_a_stand_in():
    assert drawable("crème\n brûlée, łódź, дом, Ω", "class 3") == "crème brûlée, łódź, дом, Ω"
    assert drawable("寿司", "class 3") == "class 3"


def test_a_box_is_drawn_where_it_is():
    drawn = np.asarray(draw_objects(Image.new("RGB", (100, 90)), [[10, 50, 80, 70]], [""], [BLUE]))
    ys, xs = np.nonzero((drawn == BLUE).all(-1)[50:])  # below its name
    assert (xs.min(), ys.min() + 50, xs.max(), ys.max() + 50) == (10, 50, 80, 70)


def test_an_oblong_picture_is_enlarged_by_its_longer_side():
    assert enlarged(Image.new("RGB", (10, 40)), 100).size == (20, 80)
    assert enlarged(Image.new("RGB", (10, 400)), 100).size == (10, 400)


def test_a_picture_comes_back_from_what_a_network_is_given():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    given = np.moveaxis((rgb / 255 - mean) / std, -1, 0)
    assert np.array_equal(np.asarray(unnormalised(given, mean, std)), rgb)
    beyond = np.full((3, 1, 2), [-3.0, 9.0])  # as an augmentation may have left it
    assert np.asarray(unnormalised(beyond, mean, std)).tolist() == [[[0] * 3, [255] * 3]]


def test_truth_and_prediction_beside_the_picture_with_the_classes_that_occur():
    truth, found = np.full((10, 20), 255), np.zeros((10, 20), int)
    truth[:, 10:] = 1
    palette, labels = [RED, BLUE, (0, 255, 0)], {"truth": truth, "prediction": found}
    drawn = np.asarray(compare(Image.new("RGB", (40, 20), "white"), labels, ["a", "b", "c"], palette, side=100))
    assert drawn.shape[1] == 3 * 100 + 2 * 6
    middle = drawn[20 + 25]  # of panels of 100 x 50 below their titles
    light, dark = (89, 89, 255), (255, 89, 89)
    assert [tuple(middle[x]) for x in (50, 106 + 20, 106 + 80, 212 + 20, 212 + 80)] == [
        *((255, 255, 255), (255, 255, 255), light, dark, dark)
    ]
    below = colours_of(Image.fromarray(drawn[72:]))
    assert {RED, BLUE} <= below
    assert (0, 255, 0) not in below


def test_names_of_boxes_at_one_corner_do_not_hide_each_other():
    boxes, colours = [[20, 40, 120, 110], [22, 41, 110, 100], [21, 42, 115, 105]], [RED, BLUE, (0, 255, 0)]
    drawn = np.asarray(draw_objects(Image.new("RGB", (160, 160)), boxes, ["Sandal"] * 3, colours))
    for colour in colours:  # of the name's ground alone: at half of its height there are no lines
        rows = (drawn == colour).all(-1).sum(1)
        assert (rows >= 20).sum() >= 14


def test_a_name_wider_than_the_picture_keeps_its_end_which_is_the_score():
    left, right = ("a name that is longer than a picture of this width can hold", "0.87")
    drawn = {
        name: np.asarray(draw_objects(Image.new("RGB", (160, 60)), [[0, 30, 159, 59]], [name], [BLUE]))
        for name in (f"{left} {right}", f"{left} 0.11")
    }
    one, other = drawn.values()
    ys, xs = np.nonzero((one != other).any(-1))
    assert 120 < xs.min() < xs.max() < 158
    assert 10 < ys.min() < ys.max() < 30
