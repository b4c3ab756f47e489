"""The drawings show the numbers that they are given, at their places."""

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from mobilemamba.analysis.inside import BranchShares, ScanAttention
from mobilemamba.analysis.inside_plot import (
    draw_branch_shares,
    draw_scan_attention,
    draw_scan_order,
    draw_sub_bands,
)


@pytest.fixture
def figure() -> Figure:
    return Figure(layout="constrained", figsize=(6, 4), dpi=50)


@pytest.mark.parametrize(("directions", "panels"), [(1, 2), (2, 4), (4, 6)])
@pytest.mark.parametrize("signed", [True, False])
def test_attention_lies_over_the_picture(figure: Figure, directions: int, panels: int, signed: bool) -> None:
    weights = torch.zeros(directions, 4, 5, dtype=torch.float64)
    weights[:, 0, 1], weights[:, 1, 2] = 0.25, 1.0
    weights[0, 1, 2] = -0.5 if signed else 1.0  # in one direction
    attention = ScanAttention((1, 2), weights, weights.sum(0), torch.ones(directions))
    draw_scan_attention(figure, attention, torch.rand(3, 224, 300) / 2)  # 224 px in 4 cells of 64, at 0, 64, 128, 192
    figure.canvas.draw()
    drawn = figure.axes[:panels]
    assert len(figure.axes) == panels + 1  # and the colours' scale
    shown = drawn[0].images[0].get_array()
    assert (shown.min(), shown.max()) == (0, 1)
    meshes = [next(c for c in axis.collections if isinstance(c, QuadMesh)) for axis in drawn[1:]]
    most = max(float(abs(weights).max()), float(abs(weights.sum(0)).max()))
    assert {mesh.norm.vmax for mesh in meshes} == {most}
    assert {mesh.norm.vmin for mesh in meshes} == ({-most} if signed else {10.0 ** np.floor(np.log10(most) - 3)})
    for mesh, expected in zip(meshes, [weights.sum(0), *weights], strict=False):
        np.testing.assert_array_equal(mesh.get_array().filled(0), expected)
        assert mesh.get_array().mask.sum() == 18  # bare where nothing was taken in
        np.testing.assert_array_equal(mesh.get_coordinates()[:, 0, 1], [-0.5, 32, 96, 160, 223.5])
    for axis in drawn:
        assert {(*line.get_xdata(), *line.get_ydata()) for line in axis.lines} == {(128, 64)}


def test_shares_are_stacked(figure: Figure) -> None:
    nothing = BranchShares("stages.1.blocks.0", *4 * [float("nan")])
    draw_branch_shares(figure, [BranchShares("stages.0.blocks.0", 0.5, 0.02, 0.28, 0.2), nothing])
    figure.canvas.draw()
    (axis,) = figure.axes
    bars = [container[0] for container in axis.containers]
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0.5, 0.52, 0.8])
    assert [bar.get_width() for bar in bars] == pytest.approx([0.5, 0.02, 0.28, 0.2])
    texts = [text.get_text() for text in axis.texts]
    assert [text for text in texts if "%" in text] == ["50%", "28%", "20%"]
    assert sum("adds nothing" in text for text in texts) == 1
    assert [label.get_text() for label in axis.get_yticklabels()] == ["stages.0.blocks.0", "stages.1.blocks.0"]
    assert axis.yaxis_inverted()


def test_sub_bands_are_tiles_with_one_scale_of_details(figure: Figure) -> None:
    bands = torch.randn(4, 3, 5)
    draw_sub_bands(figure, bands, "a title")
    figure.canvas.draw()
    tiles = [axis.images[0] for axis in figure.axes[:4]]
    for tile, band in zip(tiles, bands, strict=True):
        np.testing.assert_array_equal(tile.get_array(), band)
    most = float(bands[1:].abs().max())
    assert [tile.get_clim() for tile in tiles[1:]] == 3 * [pytest.approx((-most, most))]
    assert [axis.get_title()[:3] for axis in figure.axes[:4]] == ["LL:", "HL:", "LH:", "HH:"]


def test_the_way_of_each_direction(figure: Figure) -> None:
    draw_scan_order(figure, 4, (2, 3))
    figure.canvas.draw()
    steps = [axis.images[0].get_array().tolist() for axis in figure.axes]
    forwards = [[[0, 1, 2], [3, 4, 5]], [[0, 2, 4], [1, 3, 5]]]
    assert steps == [*forwards, [[5, 4, 3], [2, 1, 0]], [[5, 3, 1], [4, 2, 0]]]
    assert [tuple(axis.lines[0].get_xydata()[0]) for axis in figure.axes] == [(0, 0), (0, 0), (2, 1), (2, 1)]
