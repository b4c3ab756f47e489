"""Lowers networks further for runtimes that take one picture, at most four dimensions and no gather operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.export.lowering.layers import Scan
from mobilemamba.export.lowering.scan import recurrence, softplus
from mobilemamba.export.lowering.wavelet import Inverse
from mobilemamba.models.replace import replace_layers


def side_by_side(network: nn.Module) -> nn.Module:
    """Replaces layers with more dimensions, above all scans, in a network from ``exportable``, and returns it."""
    replace_layers(network, _replacement)
    return network


def _replacement(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, Scan):
        return SideBySide(layer)
    return FlatInverse(layer.matrix_PP) if isinstance(layer, Inverse) else None


class FlatInverse(Inverse):
    """An :class:`Inverse` of all squares as one list; LiteRT's int8 takes only the other form."""

    def forward(self, bands: Tensor) -> Tensor:
        bands_BhwF = bands.permute(0, 2, 3, 1)  # F = 4C
        bands_MPC = bands_BhwF.flatten(0, 2).unflatten(1, (4, -1))  # M = B * h * w, P = 4
        return (self.matrix_PP @ bands_MPC).view_as(bands_BhwF)


class SideBySide(nn.Module):
    """Computes :class:`Scan` by flips, splits and concatenations of (B, L, D); (B, H, W, D) in and out.

    Shape letters: as for ``Scan``, and P projections of a direction, X = K * N * D values that advance together.
    """

    def __init__(self, scan: Scan):
        super().__init__()
        self.widths, self.norm = scan.widths, scan.norm
        for name, value in (
            ("projection_KPD", scan.projection_KDC.transpose(1, 2)),
            ("one_P", scan.one_C),
            ("expansion_KDR", scan.expansion_KRD.transpose(1, 2)),
            ("A_X", scan.A_KND.flatten()),
            ("skip_D", -scan.minus_skip_D),
        ):
            self.register_buffer(name, value.contiguous())

    projection_KPD: Tensor
    one_P: Tensor
    expansion_KDR: Tensor
    A_X: Tensor
    skip_D: Tensor

    def forward(self, u_BHWD: Tensor) -> Tensor:
        states, inner = self.widths[1], u_BHWD.shape[3]
        steps, drives, outputs = list[Tensor](), list[Tensor](), list[Tensor]()
        for u_BLD, projection_PD, expansion_DR in zip(
            self._by_step(u_BHWD), self.projection_KPD, self.expansion_KDR, strict=True
        ):
            dt_BLR, B_BLN, C_BLN = F.linear(u_BLD, projection_PD, self.one_P).split(self.widths, 2)
            dt_BLD = softplus(F.linear(dt_BLR, expansion_DR))
            drive_BLD = dt_BLD * u_BLD
            steps += [dt_BLD] * states
            drives += [drive_BLD * B_BL1 for B_BL1 in B_BLN.split(1, 2)]
            outputs += C_BLN.split(1, 2)
        h_BLX = recurrence(torch.exp(torch.cat(steps, 2) * self.A_X), torch.cat(drives, 2))
        y = [h_BLD * C_BL1 for h_BLD, C_BL1 in zip(h_BLX.split(inner, 2), outputs, strict=True)]
        directions = [sum(y[k + 1 : k + states], y[k]) for k in range(0, len(y), states)]
        y_BHWD = self._merge(directions, u_BHWD)
        return self.norm(y_BHWD + u_BHWD * self.skip_D)

    def _by_step(self, u_BHWD: Tensor) -> list[Tensor]:
        """Returns every direction's sequence, in the order of ``scan_order``."""
        forwards = [u_BHWD.flatten(1, 2), u_BHWD.transpose(1, 2).flatten(1, 2)][: (len(self.projection_KPD) + 1) // 2]
        return [*forwards, *(u_BLD.flip(1) for u_BLD in forwards)][: len(self.projection_KPD)]

    def _merge(self, directions: list[Tensor], like_BHWD: Tensor) -> Tensor:
        """Puts every direction's results back in place and sums them."""
        half = (len(directions) + 1) // 2
        forwards, backwards = directions[:half], directions[half:]
        rows, *columns = (
            [y + back.flip(1) for y, back in zip(forwards, backwards, strict=True)] if backwards else forwards
        )
        _, height, width, _ = like_BHWD.shape
        y_BHWD = rows.unflatten(1, (height, width))
        for y_BLD in columns:
            y_BHWD = y_BHWD + y_BLD.unflatten(1, (width, height)).transpose(1, 2)
        return y_BHWD
