"""The order of the scan directions, which released weights depend on."""

import pytest
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.ops.cross_scan import cross_merge, cross_scan, kept_scan_order, scan_order

# The picture 0 1 2    row-major 0..5, column-major 0 3 1 4 2 5
#             3 4 5
ORDERS = {
    1: [[0, 1, 2, 3, 4, 5]],
    2: [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]],
    4: [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]],
}
SIZES = [(1, 1), (2, 3), (7, 5), (1, 6), (4, 4), (0, 3)]


@pytest.mark.parametrize("directions", ORDERS)
def test_order(directions: int) -> None:
    order_KL = scan_order(directions, (2, 3))
    assert order_KL.tolist() == ORDERS[directions]
    assert order_KL.dtype == torch.int32  # what the compiled kernel reads


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_each_direction_visits_each_position_once(directions: int, size: tuple[int, int]) -> None:
    length = size[0] * size[1]
    order_KL = scan_order(directions, size)
    assert order_KL.shape == (directions, length)
    assert order_KL.sort(-1).values.tolist() == directions * [list(range(length))]


def test_scan_puts_a_sequence_in_the_order_of_its_steps() -> None:
    x_BKCL = torch.arange(6).expand(2, 4, 3, 6)
    scanned = cross_scan(x_BKCL, scan_order(4, (2, 3)))
    for k, order in enumerate(ORDERS[4]):
        assert torch.equal(scanned[:, k], torch.tensor(order).expand(2, 3, 6))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_merge_is_the_transpose_of_scan(directions: int, size: tuple[int, int]) -> None:
    order_KL, length = scan_order(directions, size), size[0] * size[1]
    x = torch.randn(2, 3, length, dtype=torch.float64)
    y = torch.randn(2, directions, 3, length, dtype=torch.float64)
    scanned = cross_scan(x[:, None].expand(-1, directions, -1, -1), order_KL)
    merged = cross_merge(y, order_KL)
    assert merged.shape == (2, 3, length)
    torch.testing.assert_close((scanned * y).sum(), (x * merged).sum())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_every_direction_returns_to_its_place(directions: int, size: tuple[int, int]) -> None:
    order_KL = scan_order(directions, size)
    x = torch.randn(2, 3, size[0] * size[1])
    scanned = cross_scan(x[:, None].expand(-1, directions, -1, -1), order_KL)
    torch.testing.assert_close(cross_merge(scanned, order_KL), directions * x)


def test_the_order_is_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert scan_order(2, (2, 3)).tolist() == ORDERS[2]


@pytest.mark.parametrize("directions", [0, 3, 5])
def test_other_numbers_of_directions_are_refused(directions: int) -> None:
    with pytest.raises(ConfigError, match=f"^{directions} scan directions; expected 1, 2 or 4$"):
        scan_order(directions, (2, 3))


def test_a_kept_order_is_the_order() -> None:
    assert kept_scan_order(4, (2, 3)) is kept_scan_order(4, (2, 3))
    assert torch.equal(kept_scan_order(4, (2, 3)), scan_order(4, (2, 3)))
