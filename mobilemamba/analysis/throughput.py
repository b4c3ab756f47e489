"""Throughput of a network, with the conditions of its measurement."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from mobilemamba.analysis.complexity import example_pictures
from mobilemamba.analysis.machine import device_name, rounds_to_tf32
from mobilemamba.analysis.timing import WARMUP_SECONDS, Timings, calls_per_round, interleave, time_calls
from mobilemamba.errors import ConfigError
from mobilemamba.models.fuse import count_batch_norms


@dataclass(frozen=True)
class Throughput:
    """A measured throughput with all its conditions."""

    images_per_second: float  # median over the rounds
    spread: float  # (fastest - slowest round) / median; above about 0.1 the machine was busy
    latency_ms: float  # median time of one batch in milliseconds
    batch_size: int  # pictures per batch
    img_size: tuple[int, int]  # height and width in pixels
    rounds: int  # number of timed rounds
    batches_per_round: int  # batches timed together in a round
    device: str  # name of the processor; for a CPU with torch's number of threads
    #: Dtype of weights and pictures, e.g. ``"float32"``, or ``"float32 (tf32 convolutions)"`` if CUDA rounds them.
    dtype: str
    layout: str  # of weights and pictures, ``"channels_last"``
    batch_norms: int  # BatchNorm layers in the network; 0 if they were folded into the weights
    torch: str  # version of torch
    form: str = ""  # description of how the network was prepared; empty if it was not

    def describe(self) -> str:
        norms = f"{self.batch_norms} batch norms" if self.batch_norms else "no batch norms"
        form = f"{self.form}, " if self.form else ""
        return (
            f"{self.images_per_second:.4g} img/s (median of {self.rounds} rounds, spread {self.spread:.0%}), "
            f"batch {self.batch_size} at {self.img_size[0]}x{self.img_size[1]}, {self.dtype}, {self.layout}, {norms}, "
            f"{form}{self.device}, torch {self.torch}"
        )


@dataclass(frozen=True)
class Subject:
    """A network to be timed, and on what; the fields are arguments of :func:`measure_throughput`."""

    model: nn.Module
    example: int | tuple[int, int] | torch.Tensor = 224
    batch_size: int | None = None
    form: str = ""


def measure_throughput(
    model: nn.Module,
    example: int | tuple[int, int] | torch.Tensor = 224,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    rounds: int = 5,
    budget_s: float = 3.0,
    form: str = "",
) -> Throughput:
    """Times inference (eval mode, no autograd) on pictures that are already on the device, in channels-last layout.

    The model is copied, so its device, layout and mode do not change; neither does the global random state.

    Args:
        model: Network that takes pictures (B, C, H, W) of its own dtype.
        example: Side of random square pictures, or (height, width), in pixels; or a batch of pictures.
        batch_size: Number of random pictures; by default 32 on a CPU and 256 elsewhere (the paper's, on one L40S).
        device: Device for timing; by default that of the model.
        rounds: Number of timed rounds; the result is their median.
        budget_s: Approximate total time of all rounds in seconds. Each round has at least one batch.
        form: Description of how the network was prepared.

    Raises:
        ConfigError: If ``rounds``, ``batch_size`` or ``budget_s`` is not positive.
    """
    _check_positive(rounds=rounds, budget_s=budget_s)
    model, pictures = _ready(Subject(model, example, batch_size), device)
    clock = partial(time_batches, model, pictures)
    calls = calls_per_round(clock, budget_s / rounds, min(WARMUP_SECONDS, budget_s))
    return _throughput(model, pictures, form, Timings(tuple(clock(calls) / calls for _ in range(rounds)), calls))


def compare_throughputs(
    subjects: Mapping[str, Subject],
    device: torch.device | str | None = None,
    rounds: int = 5,
    budget_s: float = 3.0,
) -> tuple[dict[str, Throughput], dict[str, Exception]]:
    """Measures several networks as :func:`measure_throughput` does one, but in common rounds.

    What else the machine does then slows all of them. Networks that take pictures of the same shape share them.

    Args:
        subjects: The networks by their names.
        device: Device for timing; by default that of each model.
        rounds: Number of timed rounds.
        budget_s: Approximate total time of all rounds of each network in seconds.

    Returns:
        The throughputs of networks that never failed, and the errors of the others.

    Raises:
        ConfigError: If ``rounds``, a batch size or ``budget_s`` is not positive.
    """
    _check_positive(rounds=rounds, budget_s=budget_s)
    ready: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    shared: dict[object, torch.Tensor] = {}
    for key, subject in subjects.items():
        model, pictures = _ready(subject, device)
        ready[key] = model, shared.setdefault((pictures.shape, pictures.dtype, pictures.device), pictures)
    clocks = {key: partial(time_batches, model, pictures) for key, (model, pictures) in ready.items()}
    timings, failed = interleave(clocks, rounds, budget_s / rounds, min(WARMUP_SECONDS, budget_s))
    return {key: _throughput(*ready[key], subjects[key].form, timings[key]) for key in timings}, failed


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{name}={value}: expected a number above 0; leave it out for the default")


def _ready(subject: Subject, device: torch.device | str | None) -> tuple[nn.Module, torch.Tensor]:
    """Returns a copy of the network, and pictures for it, on the device."""
    parameter = next(subject.model.parameters())
    device = torch.device(device) if device is not None else parameter.device
    batch_size = subject.batch_size if subject.batch_size is not None else 32 if device.type == "cpu" else 256
    _check_positive(batch_size=batch_size)
    model = copy.deepcopy(subject.model).eval().to(device).to(memory_format=torch.channels_last)
    pictures = example_pictures(model, subject.example, batch_size)
    return model, pictures.to(device=device, dtype=parameter.dtype, memory_format=torch.channels_last)


def _throughput(model: nn.Module, pictures: torch.Tensor, form: str, timings: Timings) -> Throughput:
    batch_size, _, height, width = pictures.shape
    return Throughput(
        images_per_second=batch_size / timings.median,
        spread=timings.median / min(timings.rounds) - timings.median / max(timings.rounds),
        latency_ms=timings.median * 1000,
        batch_size=batch_size,
        img_size=(height, width),
        rounds=len(timings.rounds),
        batches_per_round=timings.calls,
        device=device_name(pictures.device),
        dtype=_dtype_name(pictures.dtype, pictures.device),
        layout="channels_last",
        batch_norms=count_batch_norms(model),
        torch=torch.__version__,
        form=form,
    )


@torch.inference_mode()
def time_batches(model: nn.Module, pictures: torch.Tensor, batches: int) -> float:
    """Returns the seconds of ``batches`` forward passes, including the work queued on the model's device.

    This is one round of a measurement; to compare networks fairly, interleave their rounds.

    Args:
        model: Network in eval mode.
        pictures: (B, C, H, W) on the model's device.
        batches: Number of passes.
    """
    return time_calls(lambda: model(pictures), batches, pictures.device)


def _dtype_name(dtype: torch.dtype, device: torch.device) -> str:
    name = str(dtype).removeprefix("torch.")
    rounded = dtype == torch.float32 and rounds_to_tf32(device)[1]
    return f"{name} (tf32 convolutions)" if rounded else name
