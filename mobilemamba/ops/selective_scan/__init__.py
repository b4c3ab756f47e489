"""The selective scan (Mamba, arXiv:2312.00752, Algorithm 2) with several backends behind one function.

Each backend is a file with ``forward`` and ``backward``. They run inside one custom op, so that autograd,
torch.compile, torch.export and the flop counter all see a single node. Only ``reference``, the definition, is plain
autograd.

Backends index every tensor by position, so a direction is just an order of visit: ``forward(inputs, size)`` returns
(B, L, D) for a map, and (B, K, L, D) for sequences, which have no size. Triton's backend also takes low-rank step sizes
and maps them to the channels by a weight; for the other backends they are mapped beforehand.

Shape letters: B batch, K scan directions, D inner width, N state size, L sequence length (a map's H * W), R rank of dt.
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
from mobilemamba.ops.operator import in_turn, without_autocast
from mobilemamba.ops.scan_order import check_directions
from mobilemamba.ops.selective_scan import chunked, definition, mamba_ssm, native, triton
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_second_derivative, refuse_transforms

BACKENDS = Backends(
    "scan",
    definition.forward,
    library.backend(native.forward, native.backward),
    triton.BACKEND,
    mamba_ssm.BACKEND,  # after Triton's, as it copies its inputs and its gradients differ from call to call
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
    """Computes the selective state-space recurrence along L, for each direction and channel.

    ``delta = softplus(dt + dt_bias)``, ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``.

    Args:
        u_BKDL: Input sequences, floating point.
        dt_BKDL: Step sizes before bias and softplus.
        A_KDN: State matrix (diagonal), negative for a stable recurrence.
        B_BKNL: Input projections.
        C_BKNL: Output projections.
        D_KD: Skip weights; None means 0.
        dt_bias_KD: Step-size bias; None means 0.
        backend: One of ``BACKENDS.names``. An explicit choice never falls back.

    Returns:
        y_BKDL, of u's dtype; computed in fp32 (fp64 for fp64 input) whatever autocast says.

    Raises:
        ConfigError: If the backend's name is unknown, the tensors do not fit together, or a derivative is asked for
            that only ``reference`` has: a second, forward-mode or ``torch.func`` derivative.
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    D_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if D_KD is None else D_KD
    dt_bias_KD = A_KDN.new_zeros(A_KDN.shape[:2]) if dt_bias_KD is None else dt_bias_KD
    if not torch.compiler.is_compiling():  # the operator checks again, but with the dimensions in another order
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
    dt_weight_KRD: Tensor | None = None,
) -> Tensor:
    """Scans a map along each direction of ``scan_order``, puts the results back in place and sums them.

    Args:
        u_BLD: The map, row-major.
        dt_BKLD: Step sizes of each direction before bias and softplus, by position.
        A_KDN: State matrix.
        B_BKLN: Input projections, by position.
        C_BKLN: Output projections, by position.
        D_KD: Skip weights.
        dt_bias_KD: Step-size bias.
        size: (H, W).
        backend: As for ``selective_scan``.
        dt_weight_KRD: If given, the step sizes are low-rank, (B, K, L, R), and this maps them to the channels.

    Returns:
        y_BLD, of u's dtype.

    Raises:
        ConfigError: As for ``selective_scan``, or if K is not 1, 2 or 4.
        BackendUnavailableError: If an explicitly chosen backend cannot run on these tensors.
    """
    inputs = ScanInputs(u_BLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD)
    if dt_weight_KRD is not None and (standard_only() or not _is_triton(inputs, backend)):
        inputs, dt_weight_KRD = inputs._replace(dt=expand_dt(dt_BKLD, dt_weight_KRD)), None
    return _scan(inputs, size, backend, dt_weight_KRD)


def expand_dt(dt_BKLR: Tensor, weight_KRD: Tensor) -> Tensor:
    """Returns the step sizes of all channels, (B, K, L, D), from low-rank ones, by one matrix product per direction."""
    batch, _, length, _ = dt_BKLR.shape
    dt_KMR = dt_BKLR.transpose(0, 1).flatten(1, 2)  # M = B * L
    return torch.bmm(dt_KMR, weight_KRD).unflatten(1, (batch, length)).transpose(0, 1)


def _expanded(inputs: ScanInputs, dt_weight: Tensor) -> ScanInputs:
    return inputs._replace(dt=expand_dt(inputs.dt.to(dt_weight.dtype), dt_weight))


def _is_triton(inputs: ScanInputs, backend: str) -> bool:
    u, d_state = inputs.u, inputs.A.shape[2]
    return BACKENDS.choose(backend, u.device, u.dtype, d_state=d_state).name == triton.BACKEND.name


def _scan(inputs: ScanInputs, size: Sequence[int], backend: str, dt_weight: Tensor | None = None) -> Tensor:
    if backend == "reference" or standard_only():
        _check(inputs, size)
        by_definition = backend == "reference"
        with without_autocast(inputs.u.device):
            y = definition.forward(inputs, size) if by_definition else chunked.forward(inputs, size, overwrite=False)
            return y.to(inputs.u.dtype)
    refuse_transforms(_name(size))
    return _scan_op(*inputs, *(size or (0, 0)), backend, dt_weight)


def _name(size: Sequence[int]) -> str:
    return "selective_scan_2d" if size else "selective_scan"


def _check(
    inputs: ScanInputs, size: Sequence[int], dt_weight: Tensor | None = None, grad_y: Tensor | None = None
) -> None:
    """Checks the operators' arguments."""
    layout, sizes = (_MAPS, {"L": size[0] * size[1]}) if size else (_BY_POSITION, {})
    directions = inputs.A.shape[:1].numel()  # as in A, which has no batch dimension
    tensors: tuple[Tensor, ...] = inputs
    if dt_weight is not None:
        layout, tensors = layout | {"dt": "BKLR", "dt_weight": "KRD"}, (*tensors, dt_weight)
    if grad_y is not None:
        layout, tensors = layout | {"grad_y": layout["u"]}, (*tensors, grad_y)
    check(_name(size), layout, tensors, K=directions, **sizes)
    if size:
        check_directions(directions)
        if size[0] < 0 or size[1] < 0:
            raise ConfigError(f"selective_scan_2d: a map of {size[0]} x {size[1]}; expected no negative size")


_TENSORS = "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor dt_bias"
_CHOICES = "SymInt height, SymInt width, str backend, Tensor? dt_weight=None"


def _unpack(arguments: tuple[Any, ...]) -> tuple[ScanInputs, Sequence[int], str, Tensor | None]:
    """Unpacks the operators' arguments; sequences, which have no size, are recognised by u's number of dimensions."""
    inputs, (height, width, backend, *dt_weight) = ScanInputs(*arguments[:7]), arguments[7:]
    return inputs, () if inputs.u.ndim == 4 else (height, width), backend, dt_weight[0] if dt_weight else None


def _choose(inputs: ScanInputs, backend: str) -> tuple[Callable[..., Tensor], Callable[..., Sequence[Tensor]]]:
    """Chooses inside an operator, as a traced network may run where a kernel is missing, or be converted to double."""
    chosen = BACKENDS.choose(backend, inputs.u.device, inputs.u.dtype, d_state=inputs.A.shape[2])
    if chosen.backward is None:
        raise ConfigError(f"the operator selective_scan does not know {backend!r}; call the function selective_scan_2d")
    return chosen.forward, chosen.backward


@torch.library.custom_op("mobilemamba::selective_scan", mutates_args=(), schema=f"({_TENSORS}, {_CHOICES}) -> Tensor")
def _scan_op(*arguments: Any) -> Tensor:
    inputs, size, backend, dt_weight = _unpack(arguments)
    refuse_forward_mode(_name(size))
    _check(inputs, size, dt_weight)
    with without_autocast(inputs.u.device):
        forward, _ = _choose(inputs, backend)
        if dt_weight is None:
            y = forward(inputs, size)
        elif forward is triton.forward:
            y = forward(inputs, size, dt_weight)
        else:
            y = forward(_expanded(inputs, dt_weight), size)
        return y.to(inputs.u.dtype).contiguous()


@_scan_op.register_fake
def _(*arguments: Any) -> Tensor:
    inputs, size, _, dt_weight = _unpack(arguments)
    _check(inputs, size, dt_weight)
    return torch.empty_like(inputs.u, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "mobilemamba::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, {_TENSORS}, {_CHOICES}) -> Tensor[]",
)
def _scan_backward_op(grad_y: Tensor, *arguments: Any) -> list[Tensor]:
    """Returns the gradients of the seven inputs, and of ``dt_weight`` if it is given."""
    inputs, size, backend, dt_weight = _unpack(arguments)
    _check(inputs, size, dt_weight, grad_y)
    with without_autocast(inputs.u.device):
        _, backward = _choose(inputs, backend)
        if dt_weight is None:
            return list(map(_as, backward(grad_y, inputs, size), inputs))
        if backward is triton.backward:
            gu, gdt, *others = backward(grad_y, inputs, size, dt_weight)
        else:
            gu, gdt, *others = backward(grad_y, _expanded(inputs, dt_weight), size)
        gdt_KMD, dt_KMR = (x.to(gdt.dtype).transpose(0, 1).flatten(1, 2) for x in (gdt, inputs.dt))
        gdt_BKLR = expand_dt(gdt, dt_weight.to(gdt.dtype).mT)  # the same product, back to the low rank
        grads = gu, gdt_BKLR, *others, torch.bmm(dt_KMR.mT, gdt_KMD)
        return list(map(_as, grads, (*inputs, dt_weight)))


def _as(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient with x's dtype and strides, as the fake kernel below says; copies only if they differ."""
    stride = torch.empty_like(x, device="meta").stride()
    if gradient.dtype == x.dtype and gradient.stride() == stride:
        return gradient
    return torch.empty_like(x).copy_(gradient)


@_scan_backward_op.register_fake
def _(grad_y: Tensor, *arguments: Any) -> list[Tensor]:
    inputs, size, _, dt_weight = _unpack(arguments)
    _check(inputs, size, dt_weight, grad_y)
    return [torch.empty_like(x) for x in (*inputs, dt_weight) if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, height, width, backend, dt_weight = inputs
    ctx.choices = height, width, backend
    ctx.save_for_backward(*tensors, dt_weight)


def _autograd_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, dt_weight = ctx.saved_tensors
    *grads, last = (*_scan_backward_op(grad_y, *tensors, *ctx.choices, dt_weight), None)[:8]
    return *grads, None, None, None, last


_scan_op.register_autograd(_autograd_backward, setup_context=_setup_context)
_scan_backward_op.register_autograd(lambda *_: refuse_second_derivative("selective_scan"))
_scan_backward_op.register_vmap(in_turn(_scan_backward_op))


def scan_macs(dt_shape: Sequence[int], A_shape: Sequence[int]) -> int:
    """Returns the multiply-adds of one scan by the paper's count, ``9 L D N + L D`` with D over all directions."""
    return math.prod(dt_shape) * (9 * A_shape[-1] + 1)


@register_flop_formula(torch.ops.mobilemamba.selective_scan)
def _scan_flops(u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *others: Any, **_: Any) -> int:
    """Counts a multiply-add as two operations, as the flop counter does; low-rank step sizes come with a weight."""
    dt_weight_shape = others[-1] if others else None
    dt_KLD = (*dt_shape[:-1], A_shape[1])
    of_dt = dt_weight_shape[1] * math.prod(dt_KLD) if isinstance(dt_weight_shape, torch.Size) else 0
    return 2 * (of_dt + scan_macs(dt_KLD, A_shape))


@register_flop_formula(torch.ops.mobilemamba.selective_scan_backward)
def _scan_backward_flops(grad_shape: torch.Size, u_shape: torch.Size, *others: Any, **__: Any) -> int:
    return 3 * _scan_flops(u_shape, *others)  # the states again, their gradients, the inputs' gradients
