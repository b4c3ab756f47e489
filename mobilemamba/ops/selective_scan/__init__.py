"""The selective scan (Mamba, arXiv:2312.00752, Algorithm 2) with several backends behind one function.

Each backend is a file with ``forward`` and ``backward``; they run inside one custom op, so that autograd,
torch.compile, torch.export and the flop counter all see a single node. ``reference`` alone is plain autograd: it is
the definition.

They see everything by position, so that a direction is only an order of visit: ``forward(inputs, size)`` gives
(B, L, D) for a map, and (B, K, L, D) for sequences, which have no size.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length, H * W of a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.backends import Backend, Backends, standard_only
from mobilemamba.ops.native import library
from mobilemamba.ops.operator import without_autocast
from mobilemamba.ops.scan_order import check_directions
from mobilemamba.ops.selective_scan import chunked, definition, mamba_ssm, native, triton
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_second_derivative, refuse_transforms

BACKENDS = Backends(
    "scan",
    definition.forward,
    mamba_ssm.BACKEND,
    library.backend(native.forward, native.backward),
    triton.BACKEND,
    Backend("chunked", "plain PyTorch, any device", chunked.forward, chunked.backward),
)

_SEQUENCES = {"u": "BKDL", "dt": "BKDL", "A": "KDN", "B": "BKNL", "C": "BKNL", "D": "KD", "dt_bias": "KD"}
_BY_POSITION = {"u": "BKLD", "dt": "BKLD", "A": "KDN", "B": "BKLN", "C": "BKLN", "D": "KD", "dt_bias": "KD"}
_MAPS = _BY_POSITION | {"u": "BLD"}


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
        backend: One of ``BACKENDS.names``. An explicit choice never falls back.

    Returns:
        y_BKDL, of u's dtype; computed in fp32 (fp64 for fp64 input) whatever autocast says.

    Raises:
        ConfigError: If the backend's name is unknown, the tensors do not fit together, or a derivative is asked for
            that only ``reference`` has: of a gradient, in forward mode, or by ``torch.func``.
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    D_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if D_KD is None else D_KD
    dt_bias_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if dt_bias_KD is None else dt_bias_KD
    if not torch.compiler.is_compiling():  # the operator checks once more, but has their letters in another order
        check("selective_scan", _SEQUENCES, (u_BKDL, dt_BKDL, A_KDN, B_BKNL, C_BKNL, D_KD, dt_bias_KD))
    u_BKLD, dt_BKLD, B_BKLN, C_BKLN = (x.transpose(2, 3) for x in (u_BKDL, dt_BKDL, B_BKNL, C_BKNL))
    y_BKLD = _scan(ScanInputs(u_BKLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD), (), backend)
    return y_BKLD.transpose(2, 3).contiguous()


def selective_scan_2d(
    u_BLD: Tensor,
    dt_BKLD: Tensor,
    A_KDN: Tensor,
    B_BKLN: Tensor,
    C_BKLN: Tensor,
    D_KD: Tensor,
    dt_bias_KD: Tensor,
    size: tuple[int, int],
    backend: str = "auto",
) -> Tensor:
    """``selective_scan`` of a map along each direction of ``scan_order``, back in place and summed over them.

    Args:
        u_BLD: The map, row-major.
        dt_BKLD: Step sizes before bias and softplus, of each direction, by position.
        A_KDN: State matrix.
        B_BKLN: Input projections, by position.
        C_BKLN: Output projections, by position.
        D_KD: Skip weights.
        dt_bias_KD: Step-size bias.
        size: (H, W).
        backend: As for ``selective_scan``.

    Returns:
        y_BLD, of u's dtype.

    Raises:
        ConfigError: As for ``selective_scan``, or if K is not 1, 2 or 4.
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    return _scan(ScanInputs(u_BLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD), size, backend)


def _scan(inputs: ScanInputs, size: Sequence[int], backend: str) -> Tensor:
    if backend == "reference" or standard_only():
        _check(inputs, size)
        by_definition = backend == "reference"
        with without_autocast(inputs.u.device):
            y = definition.forward(inputs, size) if by_definition else chunked.forward(inputs, size, overwrite=False)
            return y.to(inputs.u.dtype)
    refuse_transforms(_name(size))
    return _scan_op(*inputs, *(size or (0, 0)), backend)


def _name(size: Sequence[int]) -> str:
    return "selective_scan_2d" if size else "selective_scan"


def _check(inputs: ScanInputs, size: Sequence[int], grad_y: Tensor | None = None) -> None:
    """Of the operators' arguments."""
    layout, sizes = (_MAPS, {"L": size[0] * size[1]}) if size else (_BY_POSITION, {})
    directions = inputs.A.shape[:1].numel()  # by A, of which there is one for all pictures
    if grad_y is None:
        check(_name(size), layout, inputs, K=directions, **sizes)
    else:
        check(_name(size), layout | {"grad_y": layout["u"]}, (*inputs, grad_y), K=directions, **sizes)
    if size:
        check_directions(directions)
        if size[0] < 0 or size[1] < 0:
            raise ConfigError(f"selective_scan_2d: a map of {size[0]} x {size[1]}; expected no negative size")


_TENSORS = "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias"
_CHOICES = "SymInt height, SymInt width, str backend"


def _unpack(arguments: tuple[Any, ...]) -> tuple[ScanInputs, Sequence[int], str]:
    """The operators' arguments; sequences, which have no size, are known by u's dimensions."""
    *tensors, height, width, backend = arguments
    return ScanInputs(*tensors), () if tensors[0].ndim == 4 else (height, width), backend


def _choose(inputs: ScanInputs, backend: str) -> tuple[Callable[..., Tensor], Callable[..., Sequence[Tensor]]]:
    """Inside an operator: a traced network may come to a machine without a kernel, or be made double."""
    chosen = BACKENDS.choose(backend, inputs.u.device, inputs.u.dtype, d_state=inputs.A.shape[2])
    if chosen.backward is None:
        raise ConfigError(f"the operator selective_scan does not know {backend!r}; call the function selective_scan_2d")
    return chosen.forward, chosen.backward


@torch.library.custom_op("mobilemamba::selective_scan", mutates_args=(), schema=f"({_TENSORS}, {_CHOICES}) -> Tensor")
def _scan_op(*arguments: Any) -> Tensor:
    inputs, size, backend = _unpack(arguments)
    refuse_forward_mode(_name(size))
    _check(inputs, size)
    with without_autocast(inputs.u.device):
        return _choose(inputs, backend)[0](inputs, size).to(inputs.u.dtype).contiguous()


@_scan_op.register_fake
def _(*arguments: Any) -> Tensor:
    inputs, size, _ = _unpack(arguments)
    _check(inputs, size)
    return torch.empty_like(inputs.u, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "mobilemamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, {_TENSORS}, {_CHOICES}) -> ({', '.join(7 * ['Tensor'])})",
)
def _scan_backward_op(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, size, backend = _unpack(arguments)
    _check(inputs, size, grad_y)
    with without_autocast(inputs.u.device):
        grads = _choose(inputs, backend)[1](grad_y, inputs, size)
        return tuple(_as(gradient, x) for gradient, x in zip(grads, inputs, strict=True))


def _as(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient with x's dtype and strides, as the compiler is told below; a copy only where they differ."""
    stride = torch.empty_like(x, device="meta").stride()
    if gradient.dtype == x.dtype and gradient.stride() == stride:
        return gradient
    return torch.empty_like(x).copy_(gradient)


@_scan_backward_op.register_fake
def _(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, size, _ = _unpack(arguments)
    _check(inputs, size, grad_y)
    return tuple(torch.empty_like(x) for x in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, height, width, backend = inputs
    ctx.choices = height, width, backend
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_scan_backward_op(grad_y, *ctx.saved_tensors, *ctx.choices), None, None, None


_scan_op.register_autograd(_autograd_backward, setup_context=_setup_context)
_scan_backward_op.register_autograd(lambda *_: refuse_second_derivative("selective_scan"))


def scan_macs(dt_shape: Sequence[int], A_shape: Sequence[int]) -> int:
    """Multiply-adds of one scan by the paper's count, ``9 L D N + L D`` with D over all directions."""
    return math.prod(dt_shape) * (9 * A_shape[-1] + 1)


@register_flop_formula(torch.ops.mobilemamba.selective_scan)
def _scan_flops(u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * scan_macs(dt_shape, A_shape)  # the counter's convention: a multiply-add is two operations


@register_flop_formula(torch.ops.mobilemamba.selective_scan_backward)
def _scan_backward_flops(grad_shape: torch.Size, u_shape: torch.Size, *others: torch.Size, **__: Any) -> int:
    return 3 * _scan_flops(u_shape, *others)  # the states once more, their gradients, the inputs' gradients
