"""Networks of equal speed, to be compared by accuracy: their channels scaled until they take as long as another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.analysis.machine import device_name
from mobilemamba.analysis.rounds import interleave
from mobilemamba.analysis.throughput import time_batches
from mobilemamba.errors import ConfigError
from mobilemamba.models import fuse_norms
from mobilemamba.screen import fit_table, make_console

Dims = tuple[int, ...]
MULTIPLE = 8  # of which the channels are kept, as in the published sizes


def match_throughput(
    *,
    config: str,
    reference: str = "mobilemamba_s6",
    size: int = 224,
    batch: int = 32,
    device: str = "cpu",
    tolerance: float = 0.02,
    rounds: int = 7,
    seconds: float = 0.5,
) -> None:
    """Find the channels with which each network of a sweep is as fast as a reference; Fig. 3 of the paper.

    All stages of a row are scaled alike. Inference in float32, channels-last, norms folded; row and reference are timed
    in turn. Rows without embed_dims are left out. Nothing is written: put the channels found into the file.

    Args:
        config: Configuration of mobilemamba fit with a sweep whose rows set model.arch.embed_dims.
        reference: timm's name of the network to be as fast as.
        size: Side of the square pictures in pixels.
        batch: Pictures at a time.
        device: cpu, cuda or another of torch's.
        tolerance: How near to the reference's throughput is near enough, as a share of it.
        rounds: How often the two are timed for each number of channels.
        seconds: About how long each runs in a round.

    Raises:
        ConfigError: If no row sets embed_dims, or an option cannot work.
    """
    for name, value in (("size", size), ("batch", batch), ("tolerance", tolerance), ("rounds", rounds)):
        if value <= 0:
            raise ConfigError(f"--{name} {value}: expected more than 0")
    networks = _scalable_networks(config)
    pictures = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    target = _ready(timm.create_model(reference), device)
    lines = []
    for name, kwargs in networks.items():

        def speed(dims: Dims, name: str = name, kwargs: dict[str, Any] = kwargs) -> float:
            model = _ready(timm.create_model(**{**kwargs, "embed_dims": dims}), device)
            ratio = _relative_speed(model, target, pictures, rounds, seconds)
            print(f"{name}: {list(dims)} {ratio:.1%}")
            return ratio

        dims, ratio = match_width(tuple(kwargs["embed_dims"]), speed, tolerance)
        with torch.device("meta"):
            counts = complexity(timm.create_model(**{**kwargs, "embed_dims": dims}), size)
        costs = (f"{counts.flops / 1e6:.1f}", f"{counts.params / 1e6:.2f}")
        lines.append([name, str(list(dims)), f"{ratio:.1%}", *costs])
    console, header = make_console(), ["row", "embed_dims", "speed", "FLOPs (M)", "params (M)"]
    title = f"As fast as {reference}"
    console.print(fit_table(console.width, header, lines, title=title, numeric=range(1, 5), spare=[4, 3]))
    print(f"inference, batch {batch} at {size}x{size}, float32, channels-last, norms folded, {device_name(device)}")


def match_width(dims: Dims, speed: Callable[[Dims], float], tolerance: float, tries: int = 10) -> tuple[Dims, float]:
    """The multiple of given channels at which a network is as fast as another.

    Once a faster and a slower number of channels are known, the next lies between them, where a power law through both
    says; until then time is taken to grow with the channels: mostly it grows faster, and the step then goes too far.

    Args:
        dims: Channels of each stage to start from.
        speed: The network's throughput with such channels over that of the other network.
        tolerance: How near to 1 is near enough.
        tries: Most numbers of channels to measure.

    Returns:
        The channels and their speed: the nearest that were measured.
    """
    measured: dict[Dims, float] = {}
    factor = 1.0
    faster, slower = None, None  # the nearest of either kind: logarithms of factor and speed
    for _ in range(tries):
        scaled = tuple(max(1, round(dim * factor / MULTIPLE)) * MULTIPLE for dim in dims)
        if scaled in measured:
            break  # the step is finer than the channels are
        ratio = measured[scaled] = speed(scaled)
        if abs(ratio - 1) <= tolerance:
            break
        point = math.log(factor), math.log(ratio)
        faster, slower = (point, slower) if ratio > 1 else (faster, point)
        if faster and slower:
            share = faster[1] / (faster[1] - slower[1])
            factor = math.exp(faster[0] + share * (slower[0] - faster[0]))
        else:
            factor *= ratio
    return min(measured.items(), key=lambda item: abs(item[1] - 1))


def _scalable_networks(config: str) -> Mapping[str, dict[str, Any]]:
    from mobilemamba.cli import plan  # lightning, which the other tools do not need
    from mobilemamba.sweep import network_kwargs

    kwargs = {row.name: network_kwargs(row.config) for row in plan(["--config", config])}
    found = {name: values for name, values in kwargs.items() if values is not None and "embed_dims" in values}
    if not found:
        raise ConfigError(f"--config {config}: no row sets model.arch.embed_dims, which is what would be scaled")
    return found


def _ready(model: nn.Module, device: str) -> nn.Module:
    return fuse_norms(model).to(device).to(memory_format=torch.channels_last)


def _relative_speed(model: nn.Module, target: nn.Module, pictures: torch.Tensor, rounds: int, seconds: float) -> float:
    clocks = {network: partial(time_batches, network, pictures) for network in (model, target)}
    timings, failed = interleave(clocks, rounds, seconds)
    if failed:
        raise next(iter(failed.values()))
    return timings[target].median / timings[model].median
