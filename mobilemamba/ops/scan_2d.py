"""The selective scan of a feature map in several directions, summed.

Everything is indexed by position, not by step, so that a direction is only an order of visit. The compiled kernel reads
the map in that order; the other backends get the sequences rearranged.

Shape letters: B batch, K scan directions, D inner width, N state size, L = H * W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.cross_scan import check_directions, cross_merge, cross_scan, kept_scan_order, scan_order
from mobilemamba.ops.selective_scan import resolve_backend, scan_macs, selective_scan
from mobilemamba.ops.selective_scan.native import Scan, why_not
from mobilemamba.ops.transforms import refuse_forward_mode, refuse_second_derivative, refuse_transforms

_LAYOUT = {"u": "BLD", "dt": "BKLD", "A": "KDN", "B": "BKLN", "C": "BKLN", "D": "KD", "dt_bias": "KD"}


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
    """``selective_scan`` along each direction of ``scan_order``, back in place and summed over the directions.

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
    if backend != "reference":
        backend = resolve_backend(backend, u_BLD.device, A_KDN.shape[-1:].numel(), u_BLD.dtype)
    if backend == "native":
        refuse_transforms("selective_scan_2d")
        return torch.ops.mobilemamba.selective_scan_2d(u_BLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD, *size)
    return _rearranged(u_BLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD, size, backend)


def _rearranged(
    u_BLD: Tensor,
    dt_BKLD: Tensor,
    A_KDN: Tensor,
    B_BKLN: Tensor,
    C_BKLN: Tensor,
    D_KD: Tensor,
    dt_bias_KD: Tensor,
    size: tuple[int, int],
    backend: str,
) -> Tensor:
    """The same by ``selective_scan``, whose sequences are in the order of their steps."""
    directions = _check((u_BLD, dt_BKLD, A_KDN, B_BKLN, C_BKLN, D_KD, dt_bias_KD), *size)
    order_KL = scan_order(directions, size)
    u_BKLD = u_BLD[:, None].expand(-1, directions, -1, -1)
    u_BKDL, dt_BKDL, B_BKNL, C_BKNL = (
        cross_scan(x.transpose(2, 3), order_KL) for x in (u_BKLD, dt_BKLD, B_BKLN, C_BKLN)
    )
    y_BKDL = selective_scan(u_BKDL, dt_BKDL, A_KDN, B_BKNL, C_BKNL, D_KD, dt_bias_KD, backend)
    return cross_merge(y_BKDL, order_KL).transpose(1, 2)


def _check(inputs: tuple[Tensor, ...], height: int, width: int, grad_y: Tensor | None = None) -> int:
    """Of the operators' arguments; gives the number of directions."""
    layout = _LAYOUT if grad_y is None else _LAYOUT | {"grad_y": "BLD"}
    tensors = inputs if grad_y is None else (*inputs, grad_y)
    directions = inputs[2].shape[:1].numel()  # by A, of which there is one for all pictures
    check("selective_scan_2d", layout, tensors, L=height * width, K=directions)
    check_directions(directions)
    if height < 0 or width < 0:
        raise ConfigError(f"selective_scan_2d: a map of {height} x {width}; expected no negative size")
    return directions


@torch.library.custom_op("mobilemamba::selective_scan_2d", mutates_args=(), device_types="cpu")
def _scan_op(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, height: int, width: int
) -> Tensor:
    refuse_forward_mode("selective_scan_2d")
    if why_not(u.device, 1, u.dtype):  # a traced network may come to a machine without the kernel, or be made double
        return _rearranged(u, dt, A, B, C, D, dt_bias, (height, width), "auto").contiguous()
    directions = _check((u, dt, A, B, C, D, dt_bias), height, width)
    scan = Scan(u, dt, A, B, C, D, dt_bias, kept_scan_order(directions, (height, width)))
    return scan.forward(u.new_empty(u.shape, dtype=scan.dtype)).to(u.dtype)


@_scan_op.register_fake
def _(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, height: int, width: int
) -> Tensor:
    _check((u, dt, A, B, C, D, dt_bias), height, width)
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("mobilemamba::selective_scan_2d_backward", mutates_args=(), device_types="cpu")
def _scan_backward_op(
    grad_y: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u, dt, A, B, C, D, dt_bias)
    directions = _check(inputs, height, width, grad_y)
    scan = Scan(*inputs, kept_scan_order(directions, (height, width)))
    gu, gdt, gA, gB, gC, gD, gbias = scan.backward(grad_y)
    grads = (gu, gdt, gA, gB.transpose(1, 2), gC.transpose(1, 2), gD, gbias)
    return tuple(_as(gradient, x) for gradient, x in zip(grads, inputs, strict=True))  # type: ignore[return-value]


def _as(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient with x's dtype and strides, as the compiler is told below; a copy only where they differ."""
    stride = torch.empty_like(x, device="meta").stride()
    if gradient.dtype == x.dtype and gradient.stride() == stride:
        return gradient
    return torch.empty_like(x).copy_(gradient)


@_scan_backward_op.register_fake
def _(grad_y: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    *tensors, height, width = inputs
    _check(tuple(tensors), height, width, grad_y)
    return tuple(torch.empty_like(x) for x in tensors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.mobilemamba.selective_scan_2d_backward(grad_y, *ctx.saved_tensors, ctx.height, ctx.width)
    return *grads, None, None


_scan_op.register_autograd(_autograd_backward, setup_context=_setup_context)
_scan_backward_op.register_autograd(lambda *_: refuse_second_derivative("selective_scan_2d"))


@register_flop_formula(torch.ops.mobilemamba.selective_scan_2d)
def _scan_flops(u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any) -> int:
    batch, directions, length, width = dt_shape
    return 2 * scan_macs(torch.Size((batch, directions, width, length)), A_shape)


@register_flop_formula(torch.ops.mobilemamba.selective_scan_2d_backward)
def _scan_backward_flops(
    grad_shape: torch.Size, u_shape: torch.Size, dt_shape: torch.Size, A_shape: torch.Size, *_: Any, **__: Any
) -> int:
    return 3 * _scan_flops(u_shape, dt_shape, A_shape)
