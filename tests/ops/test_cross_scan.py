"""The order of the scan directions, which released weights depend on."""

import pytest
import torch

from mobilemamba.ops.cross_scan import cross_merge, cross_scan

# The picture 0 1 2    row-major 0..5, column-major 0 3 1 4 2 5
#             3 4 5
ORDERS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]],
    4: [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]],
}
SIZES = [(1, 1), (2, 3), (7, 5), (1, 6), (4, 4)]


@pytest.mark.parametrize("directions", ORDERS)
def test_order(directions: int) -> None:
    picture = torch.arange(6).reshape(1, 1, 2, 3)
    assert cross_scan(picture, directions)[0, :, 0].tolist() == ORDERS[directions]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_merge_is_the_transpose_of_scan(directions: int, size: tuple[int, int]) -> None:
    height, width = size
    x, y = torch.randn(2, 3, *size), torch.randn(2, directions, 3, height * width)
    scanned, merged = cross_scan(x, directions), cross_merge(y, size)
    assert scanned.is_contiguous()
    assert merged.shape == (2, 3, height * width)
    torch.testing.assert_close((scanned * y).sum(), (x.flatten(2) * merged).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_every_direction_returns_to_its_place(directions: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(cross_merge(cross_scan(x, directions), size), directions * x.flatten(2))
