"""The figure of receptive fields: what is where, in which colours, and legible."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from mobilemamba.analysis.erf import UNTRAINED, ReceptiveField, Row, draw_receptive_fields, figure_size
from mobilemamba.errors import ConfigError

MAP = np.zeros((32, 32))
MAP[12:21, 12:21] = 0.01
MAP[16, 16] = 1.0
FIELD = ReceptiveField("stages.1", MAP, (16.0, 16.0), (2, 2), (4, 4), (8.0, 8.0), "relu", 50, 0, np.ones((50, 4)))


def drawn(*rows: Row, **options) -> Figure:
    figure = Figure(layout="constrained", figsize=figure_size(rows))
    draw_receptive_fields(figure, rows, **options)
    figure.draw_without_rendering()
    return figure


def panels(figure: Figure) -> list:
    return [axis for axis in figure.axes if axis.images]


@pytest.mark.parametrize(
    ("display", "expected"), [("raw", 0.01), ("power", 0.01**0.2), ("log", np.log10(1 + 9.99) / 3)]
)
def test_colours_are_of_the_maximum(display, expected: float) -> None:
    image = panels(drawn(Row("a", "", [replace(FIELD, map=7 * MAP)]), display=display))[0].images[0]
    assert (image.get_clim(), image.cmap.name) == ((0, 1), "YlGn")
    np.testing.assert_allclose(image.get_array()[[0, 13, 16], [0, 13, 16]], [0, expected, 1])


def test_a_common_scale_compares_shares() -> None:
    """Of mass: gradients that are ten times as large change nothing, a field that is wider is paler."""
    wide = np.ones((32, 32))
    figure = drawn(
        Row("a", "", [FIELD, replace(FIELD, map=10 * MAP), replace(FIELD, map=wide)]), display="raw", scale="common"
    )
    tops = [axis.images[0].get_array().max() for axis in panels(figure)]
    np.testing.assert_allclose(tops, [1, 1, MAP.sum() / 32**2])


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)])
def test_the_figure_is_as_high_as_its_panels(size: tuple[int, int]) -> None:
    """The lower row of panels begins little below the upper one: under it there is only the name of the row."""
    fields = [replace(FIELD, map=np.ones(size), centre=(8.0, 8.0))] * 3
    figure = drawn(Row("a", "", fields), Row("b", "", fields))
    upper, lower = panels(figure)[0], panels(figure)[3]
    assert 0 < upper.get_window_extent().y0 - lower.get_window_extent().y1 < 0.8 * figure.dpi


def test_signs_have_colours_of_their_own() -> None:
    image = panels(drawn(Row("a", "", [replace(FIELD, map=-MAP, rule="signed")])))[0].images[0]
    assert image.get_clim() == (-1, 1)
    assert image.get_array().min() == -1


def test_squares_about_the_centre() -> None:
    (panel,) = panels(drawn(Row("a", "", [FIELD])))
    boxes = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in panel.patches]
    assert boxes == [(15.5, 15.5, 1, 1)] * 3 + [(11.5, 11.5, 9, 9)]


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (["mobilemamba_s6"], 1),
        (["a_network_whose_name_is_rather_long.and_a_tag_that_is_not_short"] * 3, 3),
        (["a"], 19),
    ],
)
def test_nothing_overlaps_or_leaves_the_figure(names: list[str], fields: int) -> None:
    tap = "levels.0.transformer_encoder.0.and_deeper"
    rows = [
        Row(name, weights, [replace(FIELD, tap=tap)] * fields)
        for name in names
        for weights in (UNTRAINED, "runs/of/today/" * 9)
    ]
    figure = drawn(*rows, data="val")
    texts = [text for axis in panels(figure) for text in (*axis.texts, axis._left_title)]
    lowest = [text for text in texts if text.get_text().startswith("\n")]
    for text in lowest:  # room for the name above, which is no text
        text.set_text(text.get_text().strip())
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axis.get_window_extent().padded(-1) for axis in panels(figure)]
    boxes += [figure.legends[0].get_window_extent()]
    boxes += [axis.get_tightbbox() for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert len(panels(figure)) == len(rows) * fields
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].padded(-1).overlaps(pair[1])]
    shown = [text.get_text() for text in texts]
    assert shown.count("UNTRAINED") == len(names)
    assert all(panel.get_aspect() == 1 for panel in panels(figure))


def test_what_cannot_be() -> None:
    for options, message in (({"display": "sqrt"}, "log, raw, power"), ({"scale": "row"}, "own, common")):
        with pytest.raises(ConfigError, match=message):
            drawn(Row("a", "", [FIELD]), **options)
    with pytest.raises(ConfigError, match="no receptive fields"):
        draw_receptive_fields(Figure(), [Row("a", "", [])])
