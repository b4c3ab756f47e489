"""Networks of PyTorch's that are run by another program in its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mobilemamba.dense.candidates import as_candidates
from mobilemamba.export.form import exportable
from mobilemamba.export.format import Format, Source
from mobilemamba.export.formats import FORMATS
from mobilemamba.models.runtime import RuntimeNetwork


class InRuntime(nn.Module):
    """Pictures (B, C, H, W) to what the network makes of them, by another program on the CPU, without gradients.

    The first pictures of each size have it exported, which takes half a minute; the number of pictures is free.

    Args:
        network: In float32 on the CPU.
        make: The other program's network of an exported one.
    """

    def __init__(self, network: nn.Module, make: Callable[[Source], RuntimeNetwork]) -> None:
        super().__init__()
        self._source = exportable(as_candidates(network))
        self._make, self._made = make, dict[tuple[int, ...], RuntimeNetwork]()

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = shape = tuple(x.shape[1:])
        if shape not in self._made:
            self._made[shape] = self._make(Source(self._source, channels, (height, width), None))
        return self._made[shape](x)


def runners() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Runtime's name -> a network as one that runs there; of those that need no file."""
    return {form.name: partial(_run_in, form) for form in FORMATS.values() if form.runs_in_memory}


def _run_in(form: Format, network: nn.Module) -> nn.Module:
    form.need((*form.writes, *form.reads))
    return InRuntime(network, form.in_memory)
