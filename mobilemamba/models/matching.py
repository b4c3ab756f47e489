"""Matches the tensors of a checkpoint to those of a network, and reports on every one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mobilemamba.layers.conv_norm import NormLinear
from mobilemamba.models.fuse import unfuse_state
from mobilemamba.models.release_names import Released, StateDict, is_fused, is_release
from mobilemamba.models.weights_file import FoundTensors

# A counter that matters only for norms with cumulative averages, and that some exports drop.
_COUNTER = "num_batches_tracked"


@dataclass
class LoadReport:
    """What happened to each tensor, by the network's names."""

    format: str  # how the checkpoint was recognised, e.g. ``"release, norms folded"`` or ``"by name"``
    loaded: list[str] = field(default_factory=list)  # tensors that were copied into the model
    #: Tensors of the model that the checkpoint lacks; they keep their values.
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)  # tensors of the checkpoint that the model lacks
    wrong_shape: list[str] = field(default_factory=list)  # tensors of both that differ in shape, with both shapes
    #: Classifiers that start afresh because of ``new_head``, with both numbers of classes.
    fresh_heads: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor was matched, except those of a fresh head."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    @property
    def counts(self) -> str:
        """Summary in one line: how many tensors were loaded, and which were not."""
        lines = [f"{len(self.loaded)} tensors loaded", *self.fresh_heads]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.wrong_shape),
        ):
            if names:
                shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
                lines.append(f"{len(names)} {title} ({shown})")
        return "; ".join(lines)

    def __str__(self) -> str:
        return f"{self.format}: {self.counts}"


@dataclass(frozen=True)
class Match:
    """A checkpoint's tensors under the network's names."""

    state: StateDict  # all of them, whether they fit or not
    fitting: StateDict  # those that can be copied
    fresh: list[str]  # names of the classifiers that start afresh
    report: LoadReport  # what happened to each


def spellings(model: nn.Module) -> list[Collection[str]]:
    """Returns the names of a network's tensors in every convention they are known by."""
    own = model.state_dict()
    return [own.keys(), model.to_release(own).keys()] if isinstance(model, Released) else [own.keys()]


def match(model: nn.Module, found: FoundTensors, *, new_head: bool = False) -> Match:
    """Matches tensors by name, else through timm's filter for the model's older files, else by order.

    The last two ways are used only if they match every tensor.

    Args:
        model: The network; it is not changed.
        found: The checkpoint.
        new_head: Whether to leave a classifier with another number of classes out, on both sides.
    """
    heads = head_names(model) if new_head else []
    first = None
    for how, state in _readings(model, found, heads):
        reading = _fit(model, state, f"{how}, EMA weights" if found.ema else how, heads)
        if reading.report.complete:
            return reading
        first = first or reading
    assert first is not None
    return first


def head_names(model: nn.Module) -> list[str]:
    """Returns the names of timm's classifiers; those inside a :class:`NormLinear` are named by that, with its norm."""
    get_classifier: Callable[[], Any] = getattr(model, "get_classifier", lambda: None)
    classifiers = get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple | list) else [classifiers]
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if name and any(module is one for one in classifiers)]
    parents = [name.rpartition(".")[0] for name in names]
    return [
        parent if isinstance(modules[parent], NormLinear) else name for name, parent in zip(names, parents, strict=True)
    ]


def classes_of(state: StateDict, head: str) -> int:
    """Returns the number of a classifier's outputs, from its weight's first dimension; 0 if it has no weight."""
    weights = [t for n, t in state.items() if n.startswith(f"{head}.") and n.endswith("weight") and t.ndim > 1]
    return len(weights[-1]) if weights else 0


def _readings(model: nn.Module, found: FoundTensors, heads: list[str]) -> Iterator[tuple[str, StateDict]]:
    """Yields the tensors under the network's names in every possible reading, each with its name for the report."""
    state = found.state
    if isinstance(model, Released):
        yield _as_released(model, state)
    else:
        yield "by name", state
        to_timm = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if to_timm is not None:
            filtered: StateDict = {}
            # Such a function is written for certain files, and may raise anything for others.
            with contextlib.suppress(Exception):
                filtered = to_timm(dict(state), model)
            yield "by name through timm's checkpoint_filter_fn", filtered
    if found.ordered and (renamed := _by_order(model, state, heads)):
        yield f"by order (names differ, {len(renamed)} shapes agree)", renamed


def _as_released(model: Released, state: StateDict) -> tuple[str, StateDict]:
    release, folded = is_release(state), is_fused(state)
    how = ("release" if release else "mobilemamba") + (", norms folded" if folded else "")
    if release:
        state = model.from_release(state)
    return how, unfuse_state(model, state) if folded and not is_fused(model.state_dict()) else state


def _by_order(model: nn.Module, state: StateDict, heads: list[str]) -> StateDict:
    """Returns the tensors under the network's names, in order; nothing unless all shapes agree and all names differ.

    A file that shares some names is of a related network, whose other tensors may mean something else.
    """
    own = model.state_dict()
    if len(own) != len(state):
        own = {name: tensor for name, tensor in own.items() if not name.endswith(_COUNTER)}
    if len(own) != len(state) or own.keys() & state.keys():
        return {}
    for (name, tensor), theirs in zip(own.items(), state.values(), strict=True):
        in_head = any(name.startswith(f"{head}.") for head in heads)
        if tensor.shape != theirs.shape and not (in_head and tensor.ndim == theirs.ndim):
            return {}
    return dict(zip(own, state.values(), strict=True))


def _fit(model: nn.Module, state: StateDict, how: str, heads: list[str]) -> Match:
    own: dict[str, Tensor] = model.state_dict()
    report = LoadReport(how)
    fresh = [head for head in heads if classes_of(state, head) != classes_of(own, head)]
    for head in fresh:
        theirs, ours = classes_of(state, head), classes_of(own, head)
        what = "starts afresh" if ours else "left out"
        report.fresh_heads.append(f"{head}: {theirs} classes in the weights, {ours} here: {what}")
    aside = tuple(f"{head}." for head in fresh)
    fitting = {}
    for name, tensor in state.items():
        if name.startswith(aside):
            continue
        if name not in own:
            report.unexpected.append(name)
        elif tensor.shape != own[name].shape:
            report.wrong_shape.append(f"{name} {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}")
        else:
            fitting[name] = tensor
            report.loaded.append(name)
    report.missing = [n for n in own if n not in state and not n.endswith(_COUNTER) and not n.startswith(aside)]
    return Match(state, fitting, fresh, report)
