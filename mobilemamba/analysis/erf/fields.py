"""Effective receptive fields: how strongly each pixel of the pictures influences one cell of a feature map.

The procedure is that of RepLKNet (Ding et al., 2022) after Luo et al., "Understanding the Effective Receptive Field in
Deep Convolutional Neural Networks", 2016; the paper's Fig. 1 and A1 (Section A.4) show such maps of the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mobilemamba.analysis.erf.grid import Axis, Grid, find_grids, on_outputs
from mobilemamba.analysis.erf.numbers import THRESHOLDS, contribution_ratios, superlevel_areas
from mobilemamba.analysis.erf.taps import backbone_of, find_taps
from mobilemamba.errors import ConfigError, check_choice
from mobilemamba.models.evaluation import evaluating

#: Treatment of negative features and gradients: set to zero, made positive, or kept with their sign.
Rule = Literal["relu", "absolute", "signed"]
#: Row and column: of a cell as integers, or of a position as fractions of the picture's height and width.
Position = tuple[int, int] | tuple[float, float]

_RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "absolute": torch.abs, "signed": lambda x: x}


@dataclass(frozen=True)
class ReceptiveField:
    """Effective receptive field of one cell of a feature map.

    Attributes:
        tap: Name of the module that outputs the feature map.
        map: (H, W) float64, the mean over the pictures, in the scale of the network's gradients.
        centre: Exact row and column of the cell's centre, in pixels.
        cell: Row and column of the cell.
        cells: Height and width of the feature map.
        stride: Distance of cells in pixels, vertically and horizontally.
        rule: Treatment of negative values.
        pictures: Number of pictures in the mean.
        left_out: Number of pictures left out, as their gradient was not finite.
        ratios_of_pictures: (N, T) contribution ratios of each picture's own map, for ``THRESHOLDS``.
    """

    tap: str
    map: np.ndarray
    centre: tuple[float, float]
    cell: tuple[int, int]
    cells: tuple[int, int]
    stride: tuple[float, float]
    rule: Rule
    pictures: int
    left_out: int
    ratios_of_pictures: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.map.shape[0], self.map.shape[1]

    @property
    def ratios(self) -> np.ndarray:
        """Contribution ratios (T,) for ``THRESHOLDS``."""
        return contribution_ratios(self.map, self.centre)

    @property
    def areas(self) -> np.ndarray:
        """Superlevel areas (T,) for ``THRESHOLDS``."""
        return superlevel_areas(self.map)

    @property
    def quartiles(self) -> np.ndarray:
        """First quartile, median and third quartile, (3, T), of the pictures' own contribution ratios."""
        known = self.ratios_of_pictures[~np.isnan(self.ratios_of_pictures).any(1)]
        return np.quantile(known, (0.25, 0.5, 0.75), axis=0) if len(known) else np.full((3, len(THRESHOLDS)), np.nan)


def receptive_fields(
    network: nn.Module,
    pictures: Tensor | Iterable[Tensor],
    taps: Literal["stages", "blocks"] | Sequence[str] = "stages",
    rule: Rule = "relu",
    position: Position | None = None,
    batch_size: int = 16,
) -> list[ReceptiveField]:
    """Computes effective receptive fields of a network, by one forward pass and a backward pass for each tap.

    The rule "relu" is RepLKNet's: ``s = sum over channels of ReLU(f[:, cell])`` is differentiated by the picture, and
    ``sum over colours of ReLU(ds / dx)`` is the picture's own map. The network is run in evaluation mode, and its state
    is restored afterwards.

    Args:
        network: Any timm model, including ours, or a network whose ``backbone`` is one, which is then used. Its norms
            may be folded, which changes a map by up to 0.5 % of its maximum; a copy for inference has no gradients.
        pictures: (N, C, H, W) prepared for the network, or batches of them, all of the same size.
        taps: ``stages`` of timm's ``feature_info`` from stride 4 on, ``blocks`` of all stages, or names of modules.
        rule: See ``Rule``; it replaces both ReLUs.
        position: Cell or position of the field; by default the cell in the middle (h // 2, w // 2), as in RepLKNet.
        batch_size: Batch size if ``pictures`` is a tensor; does not affect the results.

    Raises:
        ConfigError: If the network has no such taps or no gradients, or does not take such pictures; if the position is
            outside; or if no picture has a finite gradient.
    """
    check_choice("rule", rule, get_args(Rule))
    network = backbone_of(network)
    names = find_taps(network, taps)
    like = next(network.parameters(), torch.empty(()))
    sums: list[_Sum] = []
    with evaluating(network), _frozen(network):
        for batch in pictures.split(batch_size) if isinstance(pictures, Tensor) else pictures:
            if not len(batch):
                continue
            x = batch.detach().to(like.device, like.dtype)
            if not sums:
                grids = find_grids(network, x[:1], names)
                sums = [_Sum(tap, grids[tap], rule, position, x.shape[-2:]) for tap in names]
            if x.shape[-2:] != sums[0].map.shape:
                raise ConfigError(
                    f"pictures of {tuple(x.shape[-2:])} px after such of {sums[0].map.shape}; give them in one size"
                )
            _add(network, x, sums)
    if not sums:
        raise ConfigError("there are no pictures; give at least one")
    return [entry.field() for entry in sums]


@torch.enable_grad()
def _add(network: nn.Module, x: Tensor, sums: list[_Sum]) -> None:
    x = x.clone().requires_grad_()
    of_tap = {entry.tap: entry for entry in sums}
    scores: dict[str, Tensor] = {}

    def see(tap: str, output: Tensor) -> None:
        scores[tap] = of_tap[tap].score(output)  # at once, as later modules may change the output in place

    with on_outputs(network, list(of_tap), see):
        network(x)
    for tap, score in scores.items():
        if not score.requires_grad:
            raise ConfigError(
                f"{type(network).__name__} has no gradients; take the network itself, not its copy for inference"
            )
        (gradient,) = torch.autograd.grad(score, x, retain_graph=True)
        of_tap[tap].add(gradient)


class _Sum:
    """Sum of a tap's maps over batches.

    Args:
        tap: Name of the module.
        grid: Grid of its output.
        rule: Treatment of negative values.
        position: Position of the cell.
        size: Height and width of the pictures.
    """

    def __init__(self, tap: str, grid: Grid, rule: Rule, position: Position | None, size: Sequence[int]) -> None:
        self.tap, self.grid, self.rule = tap, grid, rule
        self.map = np.zeros(tuple(size))
        middle = grid.rows.cells // 2, grid.columns.cells // 2
        row, column = middle if position is None else position
        self.cell = _cell(grid.rows, row, size[0], "row"), _cell(grid.columns, column, size[1], "column")
        self.centre = grid.rows.centre(self.cell[0]), grid.columns.centre(self.cell[1])
        self.ratios: list[np.ndarray] = []
        self.left_out = 0

    def score(self, feature: Tensor) -> Tensor:
        """Returns the scalar to differentiate, summed over a batch of feature maps."""
        return _RECTIFIERS[self.rule](self.grid.at(feature, *self.cell).clone()).sum()

    def add(self, gradient: Tensor) -> None:
        """Adds the maps of a batch, given its gradients (B, C, H, W)."""
        maps = _RECTIFIERS[self.rule](gradient).double().sum(1)
        finite = maps.isfinite().flatten(1).all(1)
        self.left_out += int((~finite).sum())
        for own in maps[finite].cpu().numpy():
            self.map += own
            self.ratios.append(contribution_ratios(own, self.centre))

    def field(self) -> ReceptiveField:
        """Returns the mean over the pictures.

        Raises:
            ConfigError: If no picture's gradient was finite.
        """
        number = len(self.ratios)
        if not number:
            raise ConfigError(f"tap {self.tap!r}: no picture has a finite gradient; the weights are of no use")
        return ReceptiveField(
            tap=self.tap,
            map=self.map / number,
            centre=self.centre,
            cell=self.cell,
            cells=(self.grid.rows.cells, self.grid.columns.cells),
            stride=(self.grid.rows.stride, self.grid.columns.stride),
            rule=self.rule,
            pictures=number,
            left_out=self.left_out,
            ratios_of_pictures=np.stack(self.ratios),
        )


def _cell(axis: Axis, at: float, length: int, name: str) -> int:
    """Returns the cell with an index, or the cell whose centre is nearest to a fraction of the picture."""
    if isinstance(at, float):
        if not 0 <= at <= 1:
            raise ConfigError(f"position: {name} {at} is outside the picture; give a share in 0.0 to 1.0")
        return min(range(axis.cells), key=lambda cell: abs(axis.centre(cell) - at * (length - 1)))
    if not 0 <= at < axis.cells:
        raise ConfigError(f"position: {name} {at} is outside the map; give a cell in 0 to {axis.cells - 1}")
    return at


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Context manager in which no parameter requires a gradient."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()
