"""PyTorch networks that another runtime computes, without a file of one's own."""

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
        form: Of the other program's files.
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
    """Runtime's name -> a network as one that runs there."""
    return {form.name: partial(_run_in, form) for form in FORMATS.values() if form.reads}


def _run_in(form: Format, network: nn.Module) -> nn.Module:
    form.need((*form.writes, *form.reads))
    return InRuntime(network, form)
