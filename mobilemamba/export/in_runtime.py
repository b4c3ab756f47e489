"""Runs PyTorch networks in another runtime."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mobilemamba.dense.candidates import as_candidates
from mobilemamba.export.format import Format, Source
from mobilemamba.export.formats import FORMATS
from mobilemamba.export.lowering import exportable
from mobilemamba.models.runtime import RuntimeNetwork, Shape


class InRuntime(nn.Module):
    """Runs a network on pictures (B, C, H, W) in another runtime on the CPU, without gradients.

    The first pictures of each size have it exported, which takes half a minute; also the first of each batch size, if
    the format's files take a fixed number of pictures.

    Args:
        network: The network, in float32 on the CPU.
        form: Format of the other runtime.
    """

    def __init__(self, network: nn.Module, form: Format) -> None:
        super().__init__()
        self._source = exportable(as_candidates(network))
        self._form, self._made = form, dict[Shape, RuntimeNetwork]()

    def forward(self, x: Tensor) -> Tensor:
        pictures, channels, height, width = x.shape
        batch = None if self._form.any_batch else 1 if self._form.one_picture else pictures
        shape = (batch, channels, height, width)
        if shape not in self._made:
            self._made[shape] = self._form.in_memory(Source(self._source, channels, (height, width), batch))
        return self._made[shape](x)


def runners() -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Returns, for each runtime's name, a function that makes a network run there."""
    return {form.name: partial(_run_in, form) for form in FORMATS.values() if form.reads}


def _run_in(form: Format, network: nn.Module) -> nn.Module:
    form.need((*form.writes, *form.reads))
    return InRuntime(network, form)
