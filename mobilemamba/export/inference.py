"""Networks of PyTorch's that are run by another program in its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mobilemamba.dense.candidates import as_candidates
from mobilemamba.export.form import exportable
from mobilemamba.export.format import Format, Source
from mobilemamba.export.formats import FORMATS
from mobilemamba.models.runtime import RuntimeNetwork, Shape


class InRuntime(nn.Module):
    """Pictures (B, C, H, W) to what the network makes of them, by another program on the CPU, without gradients.

    The first pictures of each size have it exported, which takes half a minute; and of each number, where a format's
    files take one alone.

    Args:
        network: In float32 on the CPU.
        make: The other program's network of an exported one.
        any_batch: Whether that takes any number of pictures.
    """

    def __init__(self, network: nn.Module, make: Callable[[Source], RuntimeNetwork], *, any_batch: bool = True) -> None:
        super().__init__()
        self._source = exportable(as_candidates(network))
        self._make, self._made, self._any_batch = make, dict[Shape, RuntimeNetwork](), any_batch

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (None if self._any_batch else batch, channels, height, width)
        if shape not in self._made:
            self._made[shape] = self._make(Source(self._source, channels, (height, width), shape[0]))
        return self._made[shape](x)


def runners() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Runtime's name -> a network as one that runs there."""
    return {form.name: partial(_run_in, form) for form in FORMATS.values() if form.reads}


def _run_in(form: Format, network: nn.Module) -> nn.Module:
    form.need((*form.writes, *form.reads))
    return InRuntime(network, form.in_memory, any_batch=form.any_batch)
