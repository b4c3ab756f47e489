"""Anchors: boxes of a few shapes around every cell of a level's grid, relative to which a head predicts its boxes.

Here the stride of a level is given. torchvision's generators divide the picture's side by the map's instead, which
shifts the boxes of maps whose sides were rounded up: for a side of 800 px by up to 84 px. Those of its RetinaNet also
round sides to whole pixels, and those of its SSD are for one size of picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mobilemamba.ops.backends import is_traced

#: (x1, y1, x2, y2) of a box, in pixels, relative to the corner of the first cell.
Box = tuple[float, float, float, float]


def around(x: float, y: float, width: float, height: float) -> Box:
    """Returns the box with a centre (x, y), a width and a height."""
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def boxes_of_ratios(sizes: Sequence[float]) -> list[Box]:
    """Returns boxes centred on a cell's corner, with area size^2 and height to width 1/2, 1 and 2, for each size."""
    return [around(0, 0, size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1.0, 2.0) for size in sizes]


def default_boxes(stride: float, low: float, high: float) -> list[Box]:
    """Returns SSD's six boxes at a cell's centre: squares of side ``low`` and sqrt(low * high), then four oblongs."""
    mean = math.sqrt(low * high)
    sides = [(low, low), (mean, mean)]
    for ratio in (2, 3):
        long, short = low * ratio**0.5, low / ratio**0.5
        sides += [(long, short), (short, long)]
    return [around(stride / 2, stride / 2, *side) for side in sides]


class Anchors:
    """Anchors of every level.

    Args:
        strides: Pixels between neighbouring cells of each level.
        boxes: Boxes of each level's first cell, equally many for every level.
    """

    def __init__(self, strides: Sequence[int], boxes: Sequence[Sequence[Box]]):
        self.strides = tuple(strides)
        self.boxes = tuple(tuple(level) for level in boxes)
        self.per_cell = len(self.boxes[0])
        self._on_gpus: dict[torch.device, list[Tensor]] = {}

    def __call__(self, grids: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Returns each level's anchors (h * w * per_cell, 4), by row, then column, then box, for grids (h, w)."""
        levels = []
        for (height, width), stride, boxes in zip(grids, self.strides, self._boxes_on(device), strict=True):
            y, x = (stride * torch.arange(side, device=device, dtype=torch.float32) for side in (height, width))
            y, x = torch.meshgrid(y, x, indexing="ij")
            corners = torch.stack((x, y, x, y), -1)
            levels.append((corners[:, :, None] + boxes).view(-1, 4))
        return levels

    def _boxes_on(self, device: torch.device) -> list[Tensor]:
        """Returns each level's boxes as (n, 4), kept for a GPU, as a copy to it makes the host wait; for reading."""
        if device.type == "cpu" or is_traced():
            return [torch.tensor(boxes, device=device) for boxes in self.boxes]
        if device not in self._on_gpus:
            self._on_gpus[device] = [torch.tensor(boxes, device=device) for boxes in self.boxes]
        return self._on_gpus[device]

    def within(self, grids: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> Tensor:
        """Returns which anchors are of cells that begin within the top left part (height, width) of the picture."""
        return torch.cat(
            [
                within(grid, stride, self.per_cell, size, device)
                for grid, stride in zip(grids, self.strides, strict=True)
            ]
        )

    def counts(self, grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[int]:
        """Returns how many anchors of each level :meth:`within` chooses, without waiting for a device."""
        cells = (_cells(grid, stride, size) for grid, stride in zip(grids, self.strides, strict=True))
        return [rows * columns * self.per_cell for rows, columns in cells]


def within(
    grid: tuple[int, int], stride: int, per_cell: int, size: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Returns which anchors (h * w * per_cell,) of a level's grid (h, w) are of cells that begin within a part of it.

    Args:
        grid: Rows and columns of the level.
        stride: Pixels between its cells.
        per_cell: Anchors of each cell.
        size: Height and width in pixels of the part, at the top left of the picture.
        device: Device of the result.
    """
    inside = torch.zeros(*grid, per_cell, dtype=torch.bool, device=device)
    rows, columns = _cells(grid, stride, size)
    inside[:rows, :columns] = True
    return inside.flatten()


def _cells(grid: tuple[int, int], stride: int, size: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (min(cells, math.ceil(side / stride)) for cells, side in zip(grid, size, strict=True))
    return rows, columns
