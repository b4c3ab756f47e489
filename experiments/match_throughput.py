"""The channels with which the rows of stages.yaml are as fast as MobileMamba-S6 on this machine (Figure 3).

    python experiments/match_throughput.py [--reference mobilemamba_s6] [--size 224] [--batch 32]

All stages of a row are scaled alike. Inference in float32, channels-last, norms folded; row and reference are timed in
turn. Nothing is written: the channels found are to be put into the file by hand.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from mobilemamba import fuse_norms
from mobilemamba.analysis.throughput import time_batches
from mobilemamba.analysis.timing import interleave
from mobilemamba.cli import plan
from mobilemamba.sweep import network_kwargs

Dims = tuple[int, ...]
MULTIPLE = 8  # of which the channels are kept, as in the published sizes


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


def main() -> None:
    """Times the rows and prints what it finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).with_name("stages.yaml")))
    parser.add_argument("--reference", default="mobilemamba_s6")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long a network runs in a round")
    args = parser.parse_args()
    pictures = torch.randn(args.batch, 3, args.size, args.size).to(memory_format=torch.channels_last)
    reference = _ready(timm.create_model(args.reference))
    for row in plan(["--config", args.config]):
        kwargs = network_kwargs(row.config) or {}
        if "embed_dims" not in kwargs:
            continue

        def speed(dims: Dims, kwargs: dict = kwargs) -> float:
            networks = (reference, _ready(timm.create_model(**{**kwargs, "embed_dims": dims})))
            clocks = {network: partial(time_batches, network, pictures) for network in networks}
            timings, _ = interleave(clocks, args.rounds, args.seconds)
            return timings[networks[0]].median / timings[networks[1]].median

        dims, ratio = match_width(tuple(kwargs["embed_dims"]), speed, tolerance=0.02)
        print(f"{row.name}: {list(dims)} runs at {ratio:.1%} of the speed of {args.reference}")


def _ready(model: nn.Module) -> nn.Module:
    return fuse_norms(model).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
