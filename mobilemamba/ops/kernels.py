"""Reports which kernels compute the operators on a device, and why no faster ones do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobilemamba.ops import batch_norm, selective_scan, wavelet
from mobilemamba.ops.backends import Backends, Kernel
from mobilemamba.ops.depthwise import depthwise_conv
from mobilemamba.ops.mix_channels import mix_channels
from mobilemamba.ops.native import library
from mobilemamba.ops.onednn import CONVOLUTION
from mobilemamba.ops.scan_norm_gate import scan_norm_gate

#: The operations that have a choice of backends: those of the network itself, and those of one laid out for inference.
NETWORK: tuple[Backends, ...] = (selective_scan.BACKENDS, wavelet.BACKENDS, batch_norm.BACKENDS)
INFERENCE: tuple[Backends, ...] = (scan_norm_gate, mix_channels, depthwise_conv, CONVOLUTION)


def all_kernels(device: torch.device) -> list[Kernel]:
    """Returns the kernel that computes each operation in float32."""
    # The token mixers that can replace the scan have no kernels of their own.
    others = [Kernel(op, "PyTorch") for op in ("mlstm", "rwkv6", "ttt", "attention")]
    return [*(table.explain("auto", device, torch.float32) for table in (*NETWORK, *INFERENCE)), *others]


def describe_kernels(device: torch.device, scan_backend: str = "auto") -> str:
    """Describes the kernels of the six model sizes in one line: ``kernels: scan native, wavelet native, 2 threads``."""
    others = scan_backend if scan_backend == "reference" else "auto"
    requested = (scan_backend, others, others)
    kernels = [table.explain(name, device, torch.float32) for name, table in zip(requested, NETWORK, strict=True)]
    return summarize(kernels, device)


def summarize(kernels: Sequence[Kernel], device: torch.device) -> str:
    """Describes in one line what runs, why nothing faster does and, on a CPU, the number of threads."""
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
    """Describes the number of threads that share the work on the CPU."""
    number = torch.get_num_threads()
    threads = f"{number} thread{'s' if number > 1 else ''}"
    reason = library.why_one_thread() if number > 1 else None
    return threads if reason is None else f"{threads}, but 1 in the compiled kernels ({reason})"
