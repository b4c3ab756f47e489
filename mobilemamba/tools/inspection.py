"""The ``backends`` and ``summary`` commands: kernels on this machine, and counts of networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.analysis.benchmark.cases import card_of, under_heads
from mobilemamba.dense import SEGMENTATION_HEADS
from mobilemamba.dense.mask_rcnn import MaskRCNN
from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, fuse_norms
from mobilemamba.models.checkpoints import build_network
from mobilemamba.ops.kernels import all_kernels, describe_threads
from mobilemamba.ops.selective_scan import BACKENDS
from mobilemamba.screen import fit_table, make_console
from mobilemamba.text import printable


def backends() -> None:
    """Show which backend computes each operation on this machine, and why no faster one does."""
    console = Console(markup=False, emoji=False)  # reasons may look like markup
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        title = f"On {device.type}" + (f", {describe_threads()}" if device.type == "cpu" else "")
        table = _table(title, "operation", "runs by", "why nothing faster does")
        for kernel in all_kernels(device):
            reasons = [f"{name}: {reason}" for name, reason in kernel.refused.items()]
            table.add_row(kernel.op, kernel.runs, "; ".join(reasons))
        console.print(table)
    title = "Backends of the scan, the fastest first (scan_backend)"
    table = _table(title, "backend", "what it is", *(device.type for device in devices))
    for name, backend in BACKENDS.by_name.items():
        answers = [backend.unavailable(device, torch.float32) for device in devices]
        table.add_row(name, backend.summary, *("runs" if reason is None else f"no: {reason}" for reason in answers))
    console.print(table)
    for device in devices:
        console.print(f"auto on {device.type}: {BACKENDS.choose('auto', device, torch.float32).name}")


def _table(title: str, *columns: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def summary(*models: str, head: str | None = None, config: list[str] | None = None) -> None:
    """Print parameters, FLOPs and MACs of the six sizes beside the paper's, of other networks, or of a configuration.

    Args:
        models: timm's names, and weights files of networks (.safetensors, .ckpt).
        head: Head on the models: deeplabv3, pspnet, semantic_fpn, for 150 classes at 512 px; or mask_rcnn, retinanet at
            800 px and ssdlite at 320 px, for 80 classes; several are separated by commas.
        config: Configuration file of ``mobilemamba fit``; with a sweep, each of its rows is counted. If there are
            several, later ones override earlier ones.
    """
    named = models or (() if config else VARIANTS)
    if head is not None and not named:
        raise ConfigError(f"--head {head}: the configuration says its own; name models to put it on, or leave it out")
    counted = [_named(name) for name in (named if head is None else under_heads(head, tuple(named)))]
    counted += _rows(config) if config else []
    lines = [_counts(entry) for entry in counted]
    header = ["model", "size (px)", "params", "FLOPs", "MACs"]
    if not config and not VARIANTS.keys().isdisjoint(entry.label for entry in counted):
        header += ["paper: params (M)", "paper: FLOPs (M)"]
        for line in lines:
            variant = VARIANTS.get(line[0])
            line += [f"{variant.paper_params_m}", f"{variant.paper_flops_m}"] if variant else ["", ""]
    console = make_console()
    numeric = range(1, len(header))
    classes = " or ".join(f"{number:,}" for number in dict.fromkeys(entry.classes for entry in counted))
    folded = [entry.label for entry in counted if entry.folded]
    but_in = f" but in {', '.join(folded)}" if folded else ""
    title = f"Counts for one picture, {classes} classes, norms not folded{but_in}"
    spare = [header.index("MACs"), header.index("size (px)")]
    console.print(fit_table(console.width, header, lines, title=title, numeric=numeric, spare=spare))
    print(
        "params: all, frozen wavelet filters included. FLOPs: the paper's convention (multiply-add = 1, norms and "
        "pooling counted, wavelet-domain convolution left out). MACs: every multiply-add."
    )
    heads = {entry.head for entry in counted}
    if not heads.isdisjoint(SEGMENTATION_HEADS):
        print(
            "Of segmenters without a second head, which only trains. The paper's FLOPs of these leave the scan out, "
            "half a percent."
        )
    if "mask_rcnn" in heads:
        print(
            f"Of mask_rcnn with {MaskRCNN.proposals:,} regions and {MaskRCNN.max_boxes} masks, the most there can be."
        )


class _Counted(NamedTuple):
    label: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    classes: int
    head: str  # empty for a classifier
    folded: bool = False  # whether it is counted with its norms folded


def _named(name: str) -> _Counted:
    card = card_of(name)
    # An auxiliary head is not used in inference.
    answering = replace(card, head_options={key: v for key, v in card.head_options.items() if key != "auxiliary"})
    size = card.preprocessing.img_size
    return _Counted(printable(name), lambda: build_network(answering), size, card.num_classes, card.head)


def _rows(config: list[str]) -> list[_Counted]:
    from mobilemamba.cli import plan  # imports lightning, which the other tools do not need
    from mobilemamba.sweep import build_task, table_network
    from mobilemamba.training.contract import TaskContract

    options = [part for path in config for part in ("--config", path)]
    try:
        rows = plan(options)
    except ConfigError as error:
        if "data: missing root" not in str(error):
            raise
        rows = plan([*options, "--data.root", "."])  # no count reads the pictures that a recipe asks for
    found = []
    for row in rows:
        task = build_task(row)
        if not isinstance(task, TaskContract):
            raise ConfigError(f"row {row.name!r}: {type(task).__name__} is no task of this package's; leave it out")
        size = row.config.get("table_size") or 224
        head = row.config["model"].get("init_args", {}).get("head", "")
        build = partial(table_network, task)
        found.append(_Counted(row.name, build, (size, size), task.table_classes, head, row.fused_of is not None))
    return found


def _counts(entry: _Counted) -> list[str]:
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # initialisers have nothing to do there
        network = entry.build()
    counts = complexity(fuse_norms(network) if entry.folded else network, entry.size)
    shown = "x".join(map(str, dict.fromkeys(entry.size)))  # only one side for a square
    return [entry.label, shown, f"{counts.params:,}", f"{counts.flops:,}", f"{counts.macs:,}"]
