"""Exact position of each cell of a feature map in the picture, tracked through one forward pass.

A cell's centre depends on every padding and stride before it: it is at ``stride * i`` after 3x3 convolutions of stride
2 with a padding of 1, elsewhere after patches or TensorFlow's padding. Positions are changed by convolutions, pools,
paddings, slices and resizing; all other operations (norms, gates, scans, attention, views) keep each cell in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from mobilemamba.errors import ConfigError
from mobilemamba.ops import standard_operators

#: Largest number of tokens that are no cells: class tokens and registers.
_MOST_OTHER_TOKENS = 16


@dataclass(frozen=True)
class Axis:
    """Cells along the height or the width of a map: cell i is centred at pixel ``first + i * stride``."""

    cells: int
    first: float = 0.0
    stride: float = 1.0

    def centre(self, cell: int) -> float:
        """Returns the centre of a cell in pixels, where 0 is the centre of the first pixel."""
        return self.first + cell * self.stride

    def windows(self, cells: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Axis:
        """Returns the axis after a convolution or a pool."""
        middle = (kernel - 1) * dilation / 2 - padding
        return Axis(cells, self.first + middle * self.stride, self.stride * stride)

    def spread(self, cells: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """Returns the axis after a transposed convolution, the inverse of :meth:`windows` with the same arguments."""
        middle = (kernel - 1) * dilation / 2 - padding
        return Axis(cells, self.first - middle * self.stride / stride, self.stride / stride)

    def part(self, cells: int, start: int, step: int = 1) -> Axis:
        """Returns the axis after a slice, or with a negative start after a padding."""
        return Axis(cells, self.first + start * self.stride, self.stride * step)

    def resized(self, cells: int) -> Axis:
        """Returns the axis after an interpolation."""
        factor = self.cells / cells
        return Axis(cells, self.first + (factor - 1) / 2 * self.stride, self.stride * factor)


@dataclass(frozen=True)
class Grid:
    """The cells of a feature map.

    Attributes:
        rows: Cells along the height.
        columns: Cells along the width.
        dims: Dimensions of both in the map's shape; None for tokens (B, N, C), where the cells are the last tokens, row
            by row.
    """

    rows: Axis
    columns: Axis
    dims: tuple[int, int] | None = None

    @property
    def number(self) -> int:
        """Number of cells."""
        return self.rows.cells * self.columns.cells

    def at(self, feature: Tensor, row: int, column: int) -> Tensor:
        """Returns the channels (B, C) of a cell."""
        if self.dims is None:
            others = feature.shape[1] - self.number  # class tokens
            return feature[:, others + row * self.columns.cells + column]
        return feature.select(self.dims[1], column).select(self.dims[0], row)

    def of(self, x: Tensor) -> Grid:
        """Returns the grid for another layout; a map that is smaller by an integer factor has merged tiles, as Swin."""
        for dims in ((2, 3), (1, 2)) if x.ndim == 4 else ():
            height, width = (x.shape[dim] for dim in dims)
            if (height, width) == (self.rows.cells, self.columns.cells):
                return Grid(self.rows, self.columns, dims)
        for dims in ((2, 3), (1, 2)) if x.ndim == 4 else ():
            height, width = (max(1, x.shape[dim]) for dim in dims)
            side = self.rows.cells // height
            if (side * height, side * width) == (self.rows.cells, self.columns.cells) and height * width > 1:
                return Grid(self.rows.windows(height, side, side), self.columns.windows(width, side, side), dims)
        return Grid(self.rows, self.columns)


@contextmanager
def on_outputs(network: nn.Module, taps: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Context manager in which ``see`` is called with the name and the output of each of these modules."""

    def hook_of(tap: str) -> Callable[..., None]:
        # If there are several tensors, e.g. features and attention maps, the first one.
        return lambda module, inputs, output: see(tap, next(t for t in tree_leaves(output) if isinstance(t, Tensor)))

    with ExitStack() as hooks:
        for tap in taps:
            hooks.enter_context(network.get_submodule(tap).register_forward_hook(hook_of(tap)))
        yield


@torch.no_grad()
def find_grids(network: nn.Module, picture: Tensor, taps: Sequence[str]) -> dict[str, Grid]:
    """Returns the grids of modules' outputs, from a forward pass of a picture (1, C, H, W).

    Raises:
        ConfigError: If the network does not take such a picture, or an output is no feature map.
    """
    found: dict[str, Grid] = {}
    follow = _Follow(picture)

    def see(tap: str, output: Tensor) -> None:
        if output not in follow.grids:
            raise ConfigError(f"tap {tap!r}: nothing leads from the picture to it; name a module inside the network")
        grid = follow.grids[output].of(output)
        is_tokens = output.ndim == 3 and 0 <= output.shape[1] - grid.number <= _MOST_OTHER_TOKENS
        if len(output) != len(picture) or (grid.dims is None and not is_tokens):
            raise ConfigError(
                f"tap {tap!r}: its output {tuple(output.shape)} is no feature map; name a module that gives one"
            )
        found[tap] = grid

    try:
        with standard_operators(), on_outputs(network, taps, see), follow:
            network(picture)
    except ConfigError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        height, width = picture.shape[-2:]
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{type(network).__name__} takes no pictures of {height} x {width} px ({reason}); give another size"
        ) from error
    if unused := [tap for tap in taps if tap not in found]:
        raise ConfigError(f"tap {unused[0]!r}: the network does not use this module; name another")
    return found


class _Follow(TorchDispatchMode):
    """Propagates the grids of inputs to outputs.

    Args:
        picture: (B, C, H, W), the input whose pixels are the first grid.
    """

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.grids = WeakTensorKeyDictionary()
        self.grids[picture] = Grid(Axis(picture.shape[-2]), Axis(picture.shape[-1]))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = op(*args, **(kwargs or {}))
        known = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x in self.grids]
        if known:
            name = op.overloadpacket.__name__
            # A matrix product has the rows of its first factor, as in attention a query keeps its position.
            of_rows = "mm" in name or "attention" in name
            # In other operations, the largest input: a gate or a class token has no positions.
            source = known[0] if of_rows else max(known, key=Tensor.numel)
            schema = {argument.name: argument.default_value for argument in op._schema.arguments}
            given = schema | dict(zip(schema, args, strict=False)) | (kwargs or {})
            tensors = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
            for x in tensors:
                self.grids[x] = _moved(name, given, self.grids[source].of(source), source, x)
        return outputs


def _moved(op: str, given: dict[str, Any], grid: Grid, source: Tensor, output: Tensor) -> Grid:
    """Returns the grid of an operation's output.

    Args:
        op: Name of the operation in ATen.
        given: Its arguments.
        grid: Grid of ``source``.
        source: The input whose positions are tracked.
        output: The output.
    """
    if grid.dims is None:
        return grid
    axes: Iterable[Axis] = (grid.rows, grid.columns)
    spatial = grid.dims == (2, 3) and output.ndim == 4
    if op == "convolution" and spatial:
        move = Axis.spread if given["transposed"] else Axis.windows
        windows = given["weight"].shape[2:], given["stride"], given["padding"], given["dilation"]
        axes = map(move, axes, output.shape[2:], *windows)
    elif op in ("max_pool2d_with_indices", "avg_pool2d") and spatial:
        kernel, dilation = given["kernel_size"], given.get("dilation", 1)
        pool = map(_both, (kernel, given["stride"] or kernel, given["padding"], dilation))
        axes = map(Axis.windows, axes, output.shape[2:], *pool)
    elif op.startswith("upsample") and spatial:
        axes = map(Axis.resized, axes, output.shape[2:])
    elif op == "constant_pad_nd":
        before = [*given["pad"][::2], *(0 for _ in source.shape)]  # from the last dimension to the first
        axes = [
            axis.part(output.shape[dim], -before[source.ndim - 1 - dim])
            for axis, dim in zip(axes, grid.dims, strict=True)
        ]
    elif op == "slice":
        start, length = given["start"] or 0, source.shape[given["dim"]]
        start = max(0, start + length) if start < 0 else start
        axes = [
            axis.part(output.shape[dim], start, given["step"]) if dim == given["dim"] % source.ndim else axis
            for axis, dim in zip(axes, grid.dims, strict=True)
        ]
    rows, columns = axes
    return Grid(rows, columns)


def _both(value: int | Sequence[int]) -> Sequence[int]:
    """Returns an argument for height and width, given as one value or two."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
