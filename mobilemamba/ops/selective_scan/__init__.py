"""The selective scan (Mamba, arXiv:2312.00752, Algorithm 2) with several backends behind one function.

Each backend is a file with ``forward`` and ``backward``; they run inside one custom op, so that autograd,
torch.compile, torch.export and the flop counter all see a single node. ``reference`` alone is plain autograd: it is
the definition.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.selective_scan import chunked, mamba_ssm, native
from mobilemamba.ops.selective_scan.reference import selective_scan_reference
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_second_derivative, refuse_transforms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One way to compute the scan.

    Attributes:
        name: What users ask for.
        summary: One line for ``mobilemamba backends``.
        device_type: The devices that it is made for, e.g. cuda; none: all.
        forward: The scan on (u, dt, A, B, C, D, dt_bias).
        backward: All seven gradients from (grad_y, *inputs).
        why_not: Given a device, a state size and a dtype, the reason it cannot run there, or None.
    """

    name: str
    summary: str
    device_type: str | None
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]
    why_not: Callable[[torch.device, int, torch.dtype], str | None]


#: Custom-op backends, the fastest first: ``auto`` takes the first that can run.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "mamba_ssm", "mamba-ssm's CUDA kernel", "cuda", mamba_ssm.forward, mamba_ssm.backward, mamba_ssm.why_not
        ),
        Backend("native", "compiled CPU kernel", "cpu", native.forward, native.backward, native.why_not),
        Backend("chunked", "plain PyTorch, any device", None, chunked.forward, chunked.backward, lambda *_: None),
    )
}
BACKEND_NAMES = ("auto", *BACKENDS, "reference")

_LAYOUT = {"u": "BKDL", "dt": "BKDL", "A": "KDN", "B": "BKNL", "C": "BKNL", "D": "KD", "dt_bias": "KD"}
_BACKWARD_LAYOUT = {"grad_y": "BKDL"} | _LAYOUT


def selective_scan(
    u_BKDL: Tensor,
    dt_BKDL: Tensor,
    A_KDN: Tensor,
    B_BKNL: Tensor,
    C_BKNL: Tensor,
    D_KD: Tensor | None = None,
    dt_bias_KD: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The selective state-space recurrence along L, for each direction and channel.

    ``delta = softplus(dt + dt_bias)``, ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``.

    Args:
        u_BKDL: Input sequences, floating point.
        dt_BKDL: Step sizes before bias and softplus.
        A_KDN: State matrix (diagonal), negative for a stable recurrence.
        B_BKNL: Input projections.
        C_BKNL: Output projections.
        D_KD: Skip weights; none means 0.
        dt_bias_KD: Step-size bias; none means 0.
        backend: One of ``BACKEND_NAMES``. An explicit choice never falls back.

    Returns:
        y_BKDL, of u's dtype; computed in fp32 (fp64 for fp64 input) whatever autocast says.

    Raises:
        ConfigError: If the backend's name is unknown, the tensors do not fit together, or a derivative is asked for
            that only ``reference`` has: of a gradient, in forward mode, or by ``torch.func``.
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    D_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if D_KD is None else D_KD
    dt_bias_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if dt_bias_KD is None else dt_bias_KD
    inputs = (u_BKDL, dt_BKDL, A_KDN, B_BKNL, C_BKNL, D_KD, dt_bias_KD)
    if backend == "reference":
        check("selective_scan", _LAYOUT, inputs)
        return selective_scan_reference(*inputs)
    refuse_transforms("selective_scan")
    chosen = resolve_backend(backend, u_BKDL.device, A_KDN.shape[-1:].numel(), u_BKDL.dtype)
    return torch.ops.mobilemamba.selective_scan(*inputs, chosen)


@torch.compiler.assume_constant_result  # the compiler cannot trace the probe, and need not
def resolve_backend(backend: str, device: torch.device, d_state: int = 1, dtype: torch.dtype = torch.float32) -> str:
    """The custom-op backend that ``backend`` stands for on ``device``.

    Raises:
        ConfigError: If the name is unknown.
        BackendUnavailableError: If it was named explicitly and cannot run there.
    """
    if backend == "auto":
        return _auto_backend(device.type, d_state, dtype)
    if backend not in BACKENDS:
        raise ConfigError(f"unknown scan backend {backend!r}; expected one of {', '.join(BACKEND_NAMES)}")
    if reason := BACKENDS[backend].why_not(device, d_state, dtype):
        raise BackendUnavailableError(
            f"scan backend {backend!r} cannot run here: {reason}. Use backend='auto', or see: mobilemamba backends"
        )
    return backend


@cache
def _auto_backend(device_type: str, d_state: int, dtype: torch.dtype) -> str:
    """The fastest backend that can run; says once which, and why no faster one does."""
    refused: list[str] = []
    for name, backend in BACKENDS.items():
        reason = backend.why_not(torch.device(device_type), d_state, dtype)
        if reason is None:
            logger.info("selective scan on %s: %s%s", device_type, name, "".join(f"; not {r}" for r in refused))
            return name
        refused.append(f"{name}: {reason}")
    raise AssertionError("the chunked backend runs everywhere")


@torch.library.custom_op("mobilemamba::selective_scan", mutates_args=())
def _scan_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, backend: str
) -> Tensor:
    inputs = (u, dt, A, B, C, D, dt_bias)
    refuse_forward_mode("selective_scan")
    sizes = check("selective_scan", _LAYOUT, inputs)
    chosen = BACKENDS[resolve_backend(backend, u.device, sizes["N"], u.dtype)]
    with torch.autocast(u.device.type, enabled=False):
        return chosen.forward(*inputs)


@_scan_op.register_fake
def _(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, backend: str) -> Tensor:
    check("selective_scan", _LAYOUT, (u, dt, A, B, C, D, dt_bias))
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("mobilemamba::selective_scan_backward", mutates_args=())
def _scan_backward_op(
    grad_y: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (grad_y, u, dt, A, B, C, D, dt_bias)
    sizes = check("selective_scan", _BACKWARD_LAYOUT, inputs)
    chosen = BACKENDS[resolve_backend(backend, u.device, sizes["N"], u.dtype)]
    with torch.autocast(u.device.type, enabled=False):
        return chosen.backward(*inputs)  # type: ignore[return-value]


@_scan_backward_op.register_fake
def _(
    grad_y: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, backend: str
) -> tuple[Tensor, ...]:
    check("selective_scan", _BACKWARD_LAYOUT, (grad_y, u, dt, A, B, C, D, dt_bias))
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, dt, A, B, C, D, dt_bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.mobilemamba.selective_scan_backward(grad_y, *ctx.saved_tensors, ctx.backend), None


_scan_op.register_autograd(_autograd_backward, setup_context=_setup_context)
_scan_backward_op.register_autograd(lambda *_: refuse_second_derivative("selective_scan"))


def scan_macs(u_shape: torch.Size, A_shape: torch.Size) -> int:
    """Multiply-adds of one scan by the paper's count, ``9 L D N + L D`` with D over all directions."""
    batch, directions, width, length = u_shape
    return batch * length * directions * width * (9 * A_shape[-1] + 1)


@register_flop_formula(torch.ops.mobilemamba.selective_scan)
def _scan_flops(u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * scan_macs(u_shape, A_shape)  # the counter's convention: a multiply-add is two operations


@register_flop_formula(torch.ops.mobilemamba.selective_scan_backward)
def _scan_backward_flops(
    grad_shape: torch.Size, u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any
) -> int:
    return 3 * 2 * scan_macs(u_shape, A_shape)  # the states once more, their gradients, the inputs' gradients
