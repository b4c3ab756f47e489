"""Wide 3x3 convolutions on a CPU by Winograd's algorithm F(4x4, 3x3), with a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016. A map is cut into tiles of 6 x 6 pixels, 4
apart, which are transformed to a basis in which the convolution is an element-wise product. There, each of the 36
places of a tile is multiplied by its weights, a matrix product over channels, and the result is transformed back to 4 x
4 pixels.

Shape letters: T tiles, C input channels, K output channels.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilemamba.models.inference.packed import PackedConv, by_pytorch, channels_first, channels_last

_OUT = 4  # side of a tile in pixels of the output
_IN = 6  # and of the input
#: Least channels in and out: with fewer, as with fewer pixels, transforming the tiles costs as much as it saves.
WIDE = 128
_LARGE = 256  # least pixels of a map
_TILES = 96  # tiles at a time, as many as stay in the cache


@cache
def _bases() -> tuple[Tensor, Tensor, Tensor]:
    """Returns the transforms of a column of a tile, of a kernel and of a product: (6, 6), (6, 3) and (4, 6)."""
    into = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    into += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    points = (0, 1, -1, 2, -2)  # and infinity
    scales = (4, -6, -6, 24, 24)
    kernel = [[point**power / scale for power in range(3)] for point, scale in zip(points, scales, strict=True)]
    back = [[float(point**power) for point in points] for power in range(_OUT)]
    tensors = (into, [*kernel, [0.0, 0.0, 1.0]], [[*row, float(power == _OUT - 1)] for power, row in enumerate(back)])
    found = tuple(torch.tensor(rows, dtype=torch.float64) for rows in tensors)
    return found[0], found[1], found[2]


@cache
def _of_tiles() -> tuple[Tensor, Tensor]:
    """Returns the transforms of a tile's 36 pixels and of a product's 36 places, (36, 36) and (16, 36) float32."""
    into, _, back = _bases()
    return torch.kron(into, into).float(), torch.kron(back, back).float()


def _transformed(weight: Tensor) -> Tensor:
    """Transforms a kernel (K, C, 3, 3) to one matrix for each place, (36, C, K)."""
    _, kernel, _ = _bases()
    return torch.einsum("ai,bj,kcij->abck", kernel, kernel, weight.double()).flatten(0, 1).to(weight.dtype)


class WinogradConv(PackedConv):
    """A wide 3x3 convolution of stride 1; for small maps, or other than float32 on a CPU, computed as a PackedConv."""

    def forward(self, x: Tensor) -> Tensor:
        if by_pytorch(x) or x.dtype != torch.float32 or x.shape[2] * x.shape[3] < _LARGE:
            return super().forward(x)
        weight, bias, (into, back) = self.laid_out(x, "winograd", _transformed), self.bias, _of_tiles()
        assert bias is not None
        batch, channels, height, width = x.shape
        down, across = -(-height // _OUT), -(-width // _OUT)
        padded = F.pad(channels_last(x), (0, 0, 1, across * _OUT + 1 - width, 1, down * _OUT + 1 - height))
        y = x.new_empty(batch, down, _OUT, across, _OUT, weight.shape[2])
        rows = max(1, _TILES // across)
        for picture, result in zip(padded, y, strict=True):
            tiles = picture.unfold(0, _IN, _OUT).unfold(1, _IN, _OUT).permute(3, 4, 0, 1, 2)  # (6, 6, down, across, C)
            for part, done in zip(tiles.split(rows, 2), result.split(rows), strict=True):
                of_place = (into @ part.reshape(_IN**2, -1)).view(_IN**2, -1, channels)
                found = (back @ torch.bmm(of_place, weight).flatten(1)).view(_OUT, _OUT, len(done), across, -1)
                found += bias
                if self.act == "relu":
                    found.relu_()
                done.copy_(found.permute(2, 0, 3, 1, 4))
        return channels_first(y.view(batch, down * _OUT, across * _OUT, -1)[:, :height, :width])
