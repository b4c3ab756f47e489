"""Operators of the network in inference, fused by the compiled CPU kernels; channels-last, without gradients.

Only ``layers.inference`` builds on them; the other layers define what they compute. Shape letters: B batch, H and W
sides, L = H * W, C channels, K scan directions, D inner width, N state size, R rank of the step size, P = K (R + 2 N),
G channels of the global mixer, k side of a kernel. All raise ConfigError for tensors that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check, check_kernel
from mobilemamba.ops.cross_scan import check_directions, kept_scan_order
from mobilemamba.ops.haar_conv import call_wavelet
from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, kernel_dtype, lay_out
from mobilemamba.ops.native.structures import DepthwiseArgs
from mobilemamba.ops.selective_scan.native import Scan
from mobilemamba.ops.transforms import refuse_forward_mode

#: Activations as oneDNN names them.
Activation = Literal["none", "relu", "swish", "sigmoid"]
_ACTS = {"none": 0, "relu": 1, "swish": 2, "sigmoid": 3, "local": 4}  # ``activation`` of depthwise.c

_DEPTHWISE = {"x": "BHWC", "weight": "kkC", "bias": "C"}
_SCANNED = {"u": "BHWD", "gate": "BHWD", "dt_weight": "KRD", "A": "KDN", "D": "KD", "dt_bias": "KD"}
_SCANNED |= {"norm_weight": "D", "norm_bias": "D"}
_LOCAL = {"x": "BHWC", "weight": "kkc", "bias": "c", "scale": "c", "shift": "c"}


_LIBRARY = torch.library.Library("mobilemamba", "FRAGMENT")


def _operator(function: Callable[..., Tensor]) -> Any:
    """Registers an operator without gradients, for the CPU; called in half the time that ``custom_op`` takes."""
    name = function.__name__
    _LIBRARY.define(f"{name}{torch.library.infer_schema(function, mutates_args=())}")
    _LIBRARY.impl(name, function, "CPU")
    operator = getattr(torch.ops.mobilemamba, name).default

    def without_gradients(*args: Any) -> Tensor:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise ConfigError(f"{name} has no gradients; call it under torch.no_grad(), or train the original network")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    _LIBRARY.impl(name, without_gradients, "Autograd")
    return operator


def _call_depthwise(act: str, x: Tensor, y: Tensor, *numbers: Tensor) -> None:
    weight, bias, *affine = (number.float().contiguous() for number in numbers)
    args = DepthwiseArgs(*x.shape, weight.shape[0], DTYPE_CODES[x.dtype], torch.get_num_threads(), _ACTS[act])
    args.x, args.y, args.weight, args.bias = x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr()
    args.x_stride[:], args.y_stride[:] = x.stride()[:3], y.stride()[:3]
    if affine:
        args.scale, args.shift = (number.data_ptr() for number in affine)
    library.call("mobilemamba_depthwise", args)


@_operator
def depthwise_conv(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: str = "none") -> Tensor:
    """A depthwise convolution of stride 1 with zeros around, and an activation.

    Args:
        x_BHWC: float32 or bfloat16.
        weight_kkC: float32, with an odd number of rows and columns.
        bias: (C,) float32.
        act: Activation of the result, one of ``Activation``.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    _check_depthwise(x_BHWC, weight_kkC, bias, act)
    x = lay_out(x_BHWC, kernel_dtype(x_BHWC.dtype))
    y = x.new_empty(x.shape)
    _call_depthwise(act, x, y, weight_kkC, bias)
    return y.to(x_BHWC.dtype)


@torch.library.register_fake("mobilemamba::depthwise_conv", lib=_LIBRARY)
def _(x: Tensor, weight: Tensor, bias: Tensor, act: str = "none") -> Tensor:
    _check_depthwise(x, weight, bias, act)
    return x.new_empty(x.shape)


def _check_depthwise(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> None:
    refuse_forward_mode("depthwise_conv")
    check_kernel("depthwise_conv", check("depthwise_conv", _DEPTHWISE, (x, weight, bias))["k"])
    if act not in get_args(Activation):
        raise ConfigError(f"depthwise_conv: activation {act!r}; expected one of {', '.join(get_args(Activation))}")


@_operator
def scan_norm_gate(
    u_BHWD: Tensor,
    projected_BHWC: Tensor,
    gate_BHWD: Tensor,
    dt_weight_KRD: Tensor,
    A_KDN: Tensor,
    D_KD: Tensor,
    dt_bias_KD: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
) -> Tensor:
    """SS2D between its projections: step sizes, the scan in all directions, LayerNorm, times the SiLU of the gate.

    Args:
        u_BHWD: The scan's input, float32 or bfloat16.
        projected_BHWC: For each direction in turn R low-rank step sizes, then N of B, then N of C.
        gate_BHWD: The gate before its SiLU.
        dt_weight_KRD: Maps low-rank step sizes to channels; computed in float32, as all that follow.
        A_KDN: State matrix.
        D_KD: Skip weights.
        dt_bias_KD: Step-size bias.
        norm_weight: (D,) of the LayerNorm.
        norm_bias: (D,) of the LayerNorm.
        norm_eps: Of the LayerNorm.

    Returns:
        (B, H, W, D), of u's dtype.
    """
    tensors = (dt_weight_KRD, A_KDN, D_KD, dt_bias_KD, norm_weight, norm_bias)
    directions, rank, d_state = _check_scan(u_BHWD, projected_BHWC, gate_BHWD, *tensors)
    parts = projected_BHWC.float().flatten(1, 2).unflatten(2, (directions, -1)).transpose(1, 2)
    dt, B, C = parts.split([rank, d_state, d_state], dim=-1)
    order = kept_scan_order(directions, (u_BHWD.shape[1], u_BHWD.shape[2]))
    scan = Scan(u_BHWD.flatten(1, 2), dt, A_KDN, B, C, D_KD, dt_bias_KD, order, dt_weight_KRD)
    y = u_BHWD.new_empty(u_BHWD.shape, dtype=scan.dtype)
    scan.forward(y.flatten(1, 2), (norm_weight, norm_bias, norm_eps), gate_BHWD.flatten(1, 2))
    return y.to(u_BHWD.dtype)


@torch.library.register_fake("mobilemamba::scan_norm_gate", lib=_LIBRARY)
def _(u: Tensor, projected: Tensor, gate: Tensor, *others: Any) -> Tensor:
    _check_scan(u, projected, gate, *others[:6])
    return u.new_empty(u.shape)


def _check_scan(u: Tensor, projected: Tensor, *others: Tensor) -> tuple[int, int, int]:
    """Gives K, R and N."""
    refuse_forward_mode("scan_norm_gate")
    sizes = check("scan_norm_gate", _SCANNED, (u, *others))
    directions, rank, d_state = (sizes[letter] for letter in "KRN")
    check_directions(directions)
    if rank == 0:
        raise ConfigError("scan_norm_gate: dt_weight has rank 0; expected 1 at least")
    projections = directions * (rank + 2 * d_state)
    check("scan_norm_gate", {"u": "BHWD", "projected": "BHWP"}, (u, projected), P=projections)
    return directions, rank, d_state


@_operator
def mix_channels(
    x_BHWC: Tensor, global_BHWG: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]
) -> Tensor:
    """MRFFI before its projection: the global part plus its wavelet branch, the local part, the rest; then ReLU.

    Args:
        x_BHWC: MRFFI's input, float32 or bfloat16.
        global_BHWG: What the state-space module makes of the first G channels.
        wavelet_weight: (4, kernel, kernel, G) of the wavelet branch, kernel odd, or none; computed in float32.
        local_weights: Of each local convolution in turn its weight (kernel, kernel, c), kernel odd, bias, scale and
            shift (c,); computed in float32.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    _check_mix(x_BHWC, global_BHWG, wavelet_weight, local_weights)
    dtype = kernel_dtype(x_BHWC.dtype)
    x, mixed = lay_out(x_BHWC, dtype), lay_out(global_BHWG, dtype)
    y = x.new_empty(x.shape)
    at = mixed.shape[-1]
    if wavelet_weight is None:
        torch.clamp_min(mixed, 0, out=y[..., :at])
    else:
        weight = wavelet_weight.float().contiguous()
        call_wavelet("mobilemamba_wavelet", x[..., :at], mixed, y[..., :at], weight, relu=True)
    for i in range(0, len(local_weights), 4):
        part = slice(at, at + local_weights[i].shape[-1])
        _call_depthwise("local", x[..., part], y[..., part], *local_weights[i : i + 4])
        at = part.stop
    torch.clamp_min(x[..., at:], 0, out=y[..., at:])
    return y.to(x_BHWC.dtype)


@torch.library.register_fake("mobilemamba::mix_channels", lib=_LIBRARY)
def _(x: Tensor, mixed: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]) -> Tensor:
    _check_mix(x, mixed, wavelet_weight, local_weights)
    return x.new_empty(x.shape)


def _check_mix(x: Tensor, mixed: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]) -> None:
    op = "mix_channels"
    refuse_forward_mode(op)
    channels = (sizes := check(op, {"x": "BHWC", "global": "BHWG"}, (x, mixed)))["G"]
    if wavelet_weight is not None:
        layout = {"x": "BHWC", "wavelet_weight": "4kkG"}
        check_kernel(op, check(op, layout, (x, wavelet_weight), **{"4": 4, "G": channels})["k"])
    for i in range(0, len(local_weights), 4):
        part = check(op, _LOCAL, (x, *local_weights[i : i + 4]))
        check_kernel(op, part["k"])
        channels += part["c"]
    if channels > sizes["C"]:
        raise ConfigError(f"{op}: the parts have {channels} channels; x has {sizes['C']}")
