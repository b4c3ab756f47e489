"""Which kernels compute the operators on a device, and why no faster ones do: what runs tell their users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mobilemamba.ops import batch_norm
from mobilemamba.ops.native import library
from mobilemamba.ops.selective_scan import BACKENDS, resolve_backend


@dataclass(frozen=True)
class Kernel:
    """What computes an operator.

    Attributes:
        op: The operator.
        runs: What computes it: a backend's name, or PyTorch, whose own operators then do it.
        refused: What is made for the device and faster but does not, each with the reason.
        chosen: Whether the user asked for it by name.
    """

    op: str
    runs: str
    refused: dict[str, str] = field(default_factory=dict)
    chosen: bool = False

    def __str__(self) -> str:
        return f"{self.op} {self.runs}" + (" (chosen)" if self.chosen else "")


def scan_kernel(device: torch.device, dtype: torch.dtype, backend: str = "auto", d_state: int = 1) -> Kernel:
    """Of the selective scan by a backend of ``selective_scan``.

    Raises:
        ConfigError: If there is no such backend.
        BackendUnavailableError: If it was chosen and cannot run there.
    """
    if backend == "reference":
        return Kernel("scan", backend, chosen=True)
    runs = resolve_backend(backend, device, d_state, dtype)
    if backend != "auto":
        return Kernel("scan", runs, chosen=True)
    faster = list(BACKENDS.values())[: list(BACKENDS).index(runs)]
    reasons = {b.name: b.why_not(device, d_state, dtype) for b in faster if b.device_type in (None, device.type)}
    return Kernel("scan", runs, {name: reason for name, reason in reasons.items() if reason})


def wavelet_kernel(device: torch.device, dtype: torch.dtype, haar: bool = True) -> Kernel:
    """Of the wavelet branch."""
    reason = library.why_not_on(device, dtype)
    return _compiled("wavelet", device, reason if haar else reason or "its kernel is for Haar's wavelet alone")


def batch_norm_kernel(device: torch.device, dtype: torch.dtype, channels_last: bool = True) -> Kernel:
    """Of batch norms in training."""
    reason = batch_norm.why_not(device, dtype)
    return _compiled("batch norm", device, reason if channels_last else reason or "the maps are not channels-last")


def _compiled(op: str, device: torch.device, why_not: str | None) -> Kernel:
    if why_not is None:
        return Kernel(op, "native")
    return Kernel(op, "PyTorch", {"native": why_not} if device.type == "cpu" else {})  # the kernels are for the CPU


def inference_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """Of what ``optimize_for_inference`` fuses: the scan with norm and gate, the mixing, depthwise convolutions."""
    reason = library.why_not_on(device, dtype)
    if reason is None and not torch.backends.mkldnn.is_available():
        reason = "this PyTorch has no oneDNN"
    return _compiled("inference, optimized", device, reason)


def all_kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Kernel]:
    """One for each operator there is."""
    ours = scan_kernel, wavelet_kernel, batch_norm_kernel, inference_kernel
    # The token mixers that can stand in the scan's place have no kernels of their own.
    others = [Kernel(op, "PyTorch") for op in ("mlstm", "rwkv6", "ttt", "attention")]
    return [*(kernel(device, dtype) for kernel in ours), *others]


def describe_kernels(device: torch.device) -> str:
    """One line on the network as it is by default, e.g. ``kernels: scan native, wavelet native, 2 threads``."""
    ours = scan_kernel, wavelet_kernel, batch_norm_kernel
    return in_one_line([kernel(device, torch.float32) for kernel in ours], device)


def in_one_line(kernels: Sequence[Kernel], device: torch.device) -> str:
    """What runs, and why nothing faster does; on a CPU in how many threads."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for kernel in kernels:
        for refused in kernel.refused.items():
            reasons.setdefault(refused, []).append(kernel.op)
    threads = f", {describe_threads()}" if device.type == "cpu" else ""
    if len(reasons) == 1:
        ((_, reason), ops), *_ = reasons.items()
        if len(ops) == len(kernels):
            return f"kernels: plain PyTorch ({reason}){threads}"
    notes = [f"; no {name} {' and '.join(ops)}: {reason}" for (name, reason), ops in reasons.items()]
    return f"kernels: {', '.join(map(str, kernels))}{threads}{''.join(notes)}"


def describe_threads() -> str:
    """How many threads share the work on the CPU."""
    number = torch.get_num_threads()
    threads = f"{number} thread{'s' if number > 1 else ''}"
    reason = library.why_one_thread() if number > 1 else None
    return threads if reason is None else f"{threads}, but 1 in the compiled kernels ({reason})"
