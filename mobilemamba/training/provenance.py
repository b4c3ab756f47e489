"""The conditions of a run's results: size and speed of the network, memory, source revision."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.analysis.resident import forget_peak, peak_resident_bytes
from mobilemamba.analysis.throughput import measure_throughput
from mobilemamba.models import for_inference
from mobilemamba.training.contract import TaskContract

#: Input channels of the network for the counts and throughput in tables, as in the paper.
TABLE_CHANNELS = 3


def measure_network(
    build_model: Callable[..., nn.Module],
    img_size: int,
    device: torch.device,
    budget_s: float = 3.0,
    num_classes: int = TaskContract.table_classes,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Measures size and speed of a network as in the paper's tables, independently of the training data.

    Parameters and FLOPs are those of the network as trained. The throughput is that of the network in evaluation mode;
    a network of ours is timed in the form in which it is deployed: laid out for inference on CPUs that support this,
    otherwise with folded norms, as in the paper. The text names the form. It is timed by PyTorch's usual kernels, as a
    deployed network runs, not by the deterministic ones of a training. Does not change the random state.

    Args:
        build_model: Returns a new network, given ``num_classes`` and ``in_chans``.
        img_size: Side of the square pictures in pixels.
        device: Device on which to time it.
        budget_s: Approximate duration of the timing in seconds.
        num_classes: Number of classes, as in the paper's tables.
        batch_size: See :func:`~mobilemamba.analysis.throughput.measure_throughput`.

    Returns:
        ``img_size``, ``num_classes``, ``params``, ``flops``, ``macs``, and ``throughput`` with the fields of
        :class:`~mobilemamba.analysis.throughput.Throughput` and their description as ``text``. JSON types only.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(num_classes=num_classes, in_chans=TABLE_CHANNELS)
    counts = complexity(model, img_size)
    model, form = for_inference(model.eval(), device)
    with usual_kernels():
        throughput = measure_throughput(model, img_size, batch_size, device, budget_s=budget_s, form=form)
    return {
        "img_size": img_size,
        "num_classes": num_classes,
        "params": counts.params,
        "flops": counts.flops,
        "macs": counts.macs,
        "throughput": {**asdict(throughput), "text": throughput.describe()},
    }


@contextlib.contextmanager
def usual_kernels() -> Iterator[None]:
    """Context without the deterministic algorithms that a trainer may have turned on."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def reset_peak_memory(device: torch.device) -> None:
    """Makes :func:`peak_memory_gib` measure from now on, if the system supports this (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        forget_peak()


def peak_memory_gib(device: torch.device) -> tuple[float | None, str]:
    """Returns the peak memory in GiB and a description: that of the tensors on a GPU, else that of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, "tensors on one GPU"
    peak = peak_resident_bytes()
    if peak is None:
        return None, "unknown on this system"
    return peak / 2**30, "resident memory of the training process"


def git_revision() -> str | None:
    """Returns the short commit of the package's source, with ``-dirty`` if changed; None if it is no git checkout."""
    source = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # fails in another repository that contains the installation
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None
