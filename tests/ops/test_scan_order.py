"""The order of the scan directions, which released weights depend on."""

import pytest
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.ops.scan_order import by_position, by_step, scan_order

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


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("directions", ORDERS)
def test_steps_come_in_that_order_and_go_back(directions: int, size: tuple[int, int]) -> None:
    x_BKLC = torch.randn(2, directions, size[0] * size[1], 3)
    steps_LBKC = by_step(x_BKLC, directions, size)
    for k, order in enumerate(scan_order(directions, size).long()):
        assert torch.equal(steps_LBKC[:, :, k], x_BKLC[:, k, order].transpose(0, 1))
    assert torch.equal(by_position(steps_LBKC, size), x_BKLC)


def test_a_map_is_every_direction_s() -> None:
    x_BLC = torch.randn(2, 6, 3)
    assert torch.equal(by_step(x_BLC, 4, (2, 3)), by_step(torch.stack(4 * [x_BLC], 1), 4, (2, 3)))


def test_sequences_stand_in_order() -> None:
    x_BKLC = torch.randn(2, 5, 7, 3)
    assert torch.equal(by_position(by_step(x_BKLC, 5, ()), ()), x_BKLC)
    assert torch.equal(by_step(x_BKLC, 5, ()), x_BKLC.permute(2, 0, 1, 3))


def test_the_order_is_on_the_cpu_whatever_the_default_device() -> None:
    scan_order.cache_clear()
    with torch.device("meta"):
        assert scan_order(2, (2, 3)).tolist() == ORDERS[2]
    assert scan_order(2, (2, 3)) is scan_order(2, (2, 3))


@pytest.mark.parametrize("directions", [0, 3, 5])
def test_other_numbers_of_directions_are_refused(directions: int) -> None:
    with pytest.raises(ConfigError, match=f"^{directions} scan directions; expected 1, 2 or 4$"):
        scan_order(directions, (2, 3))
