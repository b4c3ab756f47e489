"""Chooses one of several backends for an operation: each operation has a table of them, and one rule holds for all.

``auto`` takes the fastest backend that can run and logs once why no faster one does. A backend chosen by name is used
or refused, never replaced. ``reference`` is the definition in PyTorch's own operators, without a kernel.
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
_standard_users = 0  # contexts of ``standard_operators``, which threads may enter and leave in any order
#: Tables by operation: older versions of torch.compile accept names as constants, but no objects.
_TABLES: dict[str, Backends] = {}


@dataclass(frozen=True)
class Backend:
    """One way to compute an operation."""

    name: str  # what users ask for
    summary: str  # one line for ``mobilemamba backends``
    forward: Callable[..., Any]  # computes the operation
    backward: Callable[..., Any] | None = None  # computes its gradients, if autograd cannot find them by itself
    device_type: str | None = None  # the type of device it is made for, e.g. cuda; None: any
    #: Takes a device, a dtype and further traits of the inputs; returns why it cannot run on them, or None if it can.
    unavailable: Callable[..., str | None] = lambda *_, **__: None


@dataclass(frozen=True)
class Kernel:
    """The backend that computes an operation, and why no faster one does."""

    op: str  # name of the operation
    runs: str  # a backend's name, or "PyTorch" if PyTorch's own operators compute it
    #: Faster backends for the device that cannot run, each with the reason.
    refused: dict[str, str] = field(default_factory=dict)
    chosen: bool = False  # whether the user asked for it by name

    def __str__(self) -> str:
        return f"{self.op} {self.runs}" + (" (chosen)" if self.chosen else "")


class Backends:
    """The backends of one operation; calling the table with the definition's arguments computes the operation.

    Args:
        op: Name of the operation, as users read it.
        definition: Computes it by PyTorch's operators, which can be differentiated and exported.
        faster: The other backends, fastest first.
    """

    def __init__(self, op: str, definition: Callable[..., Any], *faster: Backend):
        self.op = op
        self.by_name = {b.name: b for b in (*faster, Backend("reference", "the definition, for tests", definition))}
        self.names = ("auto", *self.by_name)
        _TABLES[op] = self

    def __call__(self, x: Tensor, *others: Any, backend: str = "auto") -> Any:
        """Computes the operation by the backend chosen for x's device and dtype."""
        name = _choose(self.op, "reference" if _standard_only else backend, x.device, x.dtype, ())
        return self.by_name[name].forward(x, *others)

    def choose(self, requested: str, device: torch.device, dtype: torch.dtype, **traits: object) -> Backend:
        """Returns the backend that a name stands for.

        Args:
            requested: One of ``names``. An explicit choice never falls back.
            device: Device of the tensors.
            dtype: Dtype of the tensors.
            traits: Further traits of the inputs that the backends' ``unavailable`` takes.

        Raises:
            ConfigError: If the name is unknown.
            BackendUnavailableError: If the backend was named explicitly and cannot run on such tensors.
        """
        return self.by_name[_choose(self.op, requested, device, dtype, tuple(traits.items()))]

    def explain(self, requested: str, device: torch.device, dtype: torch.dtype, **traits: object) -> Kernel:
        """Returns what ``choose`` chooses and why nothing faster; raises the same errors."""
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


#: Forgets the choices made so far, for tests that imitate another machine.
forget_choices = _chosen.cache_clear


@contextmanager
def standard_operators() -> Iterator[None]:
    """Context in which PyTorch's own operators compute every operation, in all threads, whatever backend was chosen.

    A network exported or traced in it runs without this package; all derivatives and ``vmap`` work, but slowly.
    """
    global _standard_only, _standard_users
    _standard_users += 1
    _standard_only = True
    try:
        yield
    finally:
        _standard_users -= 1
        _standard_only = _standard_users > 0


def standard_only() -> bool:
    """Returns whether ``standard_operators`` is in force."""
    return _standard_only


def is_traced() -> bool:
    """Returns whether PyTorch's own operators are needed: compilers fuse them, and an export must run anywhere."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or _standard_only


def needs_reference(backend: str) -> bool:
    """Returns whether an operation whose definition is fast enough to replace a kernel must be computed by it.

    That is so under ``standard_operators``. With ``auto`` it is also so in an export, which must run anywhere, and
    while derivatives are taken that only PyTorch's operators have.
    """
    return _standard_only or (backend == "auto" and (torch.compiler.is_exporting() or transforming()))
