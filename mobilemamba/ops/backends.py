"""How one of several ways to compute an operation is chosen: a table for each operation, and one rule for all.

``auto`` takes the fastest that can run and says once why no faster one does. A name is taken at its word or refused.
``reference`` is the definition, in PyTorch's own operators, without a kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.ops.transforms import transforming

logger = logging.getLogger(__name__)

_standard_only = False
#: By operation: older compilers take names for constants, and no objects.
_TABLES: dict[str, Backends] = {}


@dataclass(frozen=True)
class Backend:
    """One way to compute an operation."""

    name: str  # what users ask for
    summary: str  # one line for ``mobilemamba backends``
    forward: Callable[..., Any]  # computes it
    backward: Callable[..., Any] | None = None  # its gradients, where autograd is not to find them by itself
    device_type: str | None = None  # the devices that it is made for, e.g. cuda; none: all
    #: Given a device, a dtype and what else the operation says of its inputs, the reason why it cannot run on them, or
    #: None.
    unavailable: Callable[..., str | None] = lambda *_, **__: None


@dataclass(frozen=True)
class Kernel:
    """What computes an operation."""

    op: str  # the operation
    runs: str  # what computes it: a backend's name, or PyTorch, whose own operators then do it
    #: What is made for the device and faster but does not, each with the reason.
    refused: dict[str, str] = field(default_factory=dict)
    chosen: bool = False  # whether the user asked for it by name

    def __str__(self) -> str:
        return f"{self.op} {self.runs}" + (" (chosen)" if self.chosen else "")


class Backends:
    """The ways to compute one operation; called with the arguments of its definition, it is the operation.

    Args:
        op: Its name, as users read it.
        definition: Computes it by PyTorch's operators, which can differentiate and export it.
        faster: The others, the fastest first.
    """

    def __init__(self, op: str, definition: Callable[..., Any], *faster: Backend):
        self.op = op
        self.by_name = {b.name: b for b in (*faster, Backend("reference", "the definition, for tests", definition))}
        self.names = ("auto", *self.by_name)
        _TABLES[op] = self

    def __call__(self, x: Tensor, *others: Any, backend: str = "auto") -> Any:
        """Computes it by the backend for x's device and dtype."""
        name = _choose(self.op, "reference" if _standard_only else backend, x.device, x.dtype, ())
        return self.by_name[name].forward(x, *others)

    def choose(self, requested: str, device: torch.device, dtype: torch.dtype, **traits: object) -> Backend:
        """The backend that a name stands for.

        Args:
            requested: One of ``names``. An explicit choice never falls back.
            device: Of the tensors.
            dtype: Of the tensors.
            traits: What else ``unavailable`` asks.

        Raises:
            ConfigError: If the name is unknown.
            BackendUnavailableError: If it was named explicitly and cannot run there.
        """
        return self.by_name[_choose(self.op, requested, device, dtype, tuple(traits.items()))]

    def explain(self, requested: str, device: torch.device, dtype: torch.dtype, **traits: object) -> Kernel:
        """What ``choose`` comes to, and why to nothing faster; raises alike."""
        runs = self.choose(requested, device, dtype, **traits).name
        if requested != "auto":
            return Kernel(self.op, runs, chosen=True)
        refused: dict[str, str] = {}
        for backend in self.by_name.values():
            if backend.name == runs:
                break
            if backend.device_type in (None, device.type):
                refused[backend.name] = backend.unavailable(device, dtype, **traits) or ""
        return Kernel(self.op, "PyTorch" if runs == "reference" else runs, refused)


@torch.compiler.assume_constant_result  # the compiler cannot trace the probes, and need not
def _choose(
    op: str, requested: str, device: torch.device, dtype: torch.dtype, traits: tuple[tuple[str, object], ...]
) -> str:
    return _chosen(op, requested, device, dtype, traits)


@cache
def _chosen(
    op: str, requested: str, device: torch.device, dtype: torch.dtype, traits: tuple[tuple[str, object], ...]
) -> str:
    table = _TABLES[op]
    if requested not in table.names:
        raise ConfigError(f"unknown {table.op} backend {requested!r}; expected one of {', '.join(table.names)}")
    if requested != "auto":
        if reason := table.by_name[requested].unavailable(device, dtype, **dict(traits)):
            raise BackendUnavailableError(
                f"{table.op} backend {requested!r} cannot run here: {reason}. "
                "Use backend='auto', or see: mobilemamba backends"
            )
        return requested
    refused: list[str] = []
    for name, backend in table.by_name.items():
        reason = backend.unavailable(device, dtype, **dict(traits))
        if reason is None:
            logger.info("%s on %s: %s%s", table.op, device.type, name, "".join(f"; not {r}" for r in refused))
            return name
        refused.append(f"{name}: {reason}")
    raise AssertionError("the definition runs everywhere")


#: Forgets what was chosen, for tests that play another machine.
forget_choices = _chosen.cache_clear


@contextmanager
def standard_operators() -> Iterator[None]:
    """Within it every operation is computed by PyTorch's own operators, whatever backend it is to have.

    What is exported or traced within it runs where this package is not; all derivatives and ``vmap`` work, but slowly.
    """
    global _standard_only
    before, _standard_only = _standard_only, True
    try:
        yield
    finally:
        _standard_only = before


def standard_only() -> bool:
    """Whether ``standard_operators`` is in force."""
    return _standard_only


def plainly(backend: str) -> str:
    """The backend to choose for an operation whose definition is fast enough to stand in for a kernel.

    It does so under ``standard_operators``, in an export, which is to run anywhere, and where derivatives are taken
    that only PyTorch's operators have; the last two leave an explicit choice alone.
    """
    if _standard_only or (backend == "auto" and (torch.compiler.is_exporting() or transforming())):
        return "reference"
    return backend
