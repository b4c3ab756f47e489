"""What there is: kernels on this machine, and the networks' parameters and operations."""

from __future__ import annotations

import warnings
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from mobilemamba.analysis import complexity
from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, Preprocessing
from mobilemamba.models.create import check_model_name
from mobilemamba.ops.kernels import all_kernels, describe_threads
from mobilemamba.ops.selective_scan import BACKENDS
from mobilemamba.screen import fit_table, make_console


def backends() -> None:
    """Show what computes each operation on this machine, and why nothing faster does."""
    console = Console()
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        title = f"On {device.type}" + (f", {describe_threads()}" if device.type == "cpu" else "")
        table = Table(title=title, title_justify="left")
        for column in ("operation", "runs by", "why nothing faster does"):
            table.add_column(column, overflow="fold")
        for kernel in all_kernels(device):
            reasons = [f"{name}: {reason}" for name, reason in kernel.refused.items()]
            table.add_row(kernel.op, kernel.runs, "; ".join(reasons))
        console.print(table)
    table = Table(title="Backends of the scan, the fastest first (scan_backend)", title_justify="left")
    for column in ("backend", "what it is", *(device.type for device in devices)):
        table.add_column(column, overflow="fold")
    for name, backend in BACKENDS.by_name.items():
        answers = [backend.unavailable(device, torch.float32) for device in devices]
        table.add_row(name, backend.summary, *("runs" if reason is None else f"no: {reason}" for reason in answers))
    console.print(table)
    for device in devices:
        console.print(f"auto on {device.type}: {BACKENDS.choose('auto', device, torch.float32).name}")


def summary(*models: str, config: list[str] | None = None) -> None:
    """Print parameters, FLOPs and MACs: of the six sizes beside the paper's, or of other networks or a configuration.

    Args:
        models: timm's names.
        config: Configuration of ``mobilemamba fit``; with a sweep, each of its rows is counted. Of several, the
            later one wins.
    """
    for name in models:
        check_model_name(name)
    named = models or (() if config else VARIANTS)
    lines = [_counts(name, name, {}, Preprocessing.of_model(name).img_size) for name in named]
    lines += [_counts(*row) for row in (_rows(config) if config else ())]
    header = ["model", "size (px)", "params", "FLOPs", "MACs"]
    if not config and not VARIANTS.keys().isdisjoint(models or VARIANTS):
        header += ["paper: params (M)", "paper: FLOPs (M)"]
        for line in lines:
            variant = VARIANTS.get(line[0])
            line += [f"{variant.paper_params_m}", f"{variant.paper_flops_m}"] if variant else ["", ""]
    console = make_console()
    numeric = range(1, len(header))
    title = "Counts for one picture, 1,000 classes, norms not fused"
    console.print(fit_table(console.width, header, lines, title=title, numeric=numeric, spare=[4, 1]))
    print(
        "params: all, frozen wavelet filters included. FLOPs: the paper's convention (multiply-add = 1, norms and "
        "pooling counted, wavelet-domain convolution left out). MACs: every multiply-add."
    )


def _counts(label: str, model: str, kwargs: dict[str, Any], size: tuple[int, int]) -> list[str]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisers that have nothing to do on shapes alone
        network = timm.create_model(model, **{"num_classes": 1000, **kwargs})
    counts = complexity(network, size)
    shown = "x".join(map(str, dict.fromkeys(size)))  # of a square, its side
    return [label, shown, f"{counts.params:,}", f"{counts.flops:,}", f"{counts.macs:,}"]


def _rows(config: list[str]) -> list[tuple[str, str, dict[str, Any], tuple[int, int]]]:
    from mobilemamba.cli import plan  # lightning, which the other tools do not need
    from mobilemamba.sweep import network_kwargs

    described = []
    for row in plan([part for path in config for part in ("--config", path)]):
        kwargs = network_kwargs(row.config)
        if kwargs is None:
            raise ConfigError(f"row {row.name!r}: its task has no model.name; summary counts classification networks")
        size = row.config.get("table_size") or 224
        described.append((row.name, kwargs.pop("model_name"), kwargs, (size, size)))
    return described
