"""Operators of the network in inference, fused by the compiled CPU kernels; channels-last, without gradients.

Only ``layers.inference`` builds on them; the other layers define what they compute. Shape letters: B batch, H and W
sides, L = H * W, C channels, K scan directions, D inner width, N state size, R rank of the step size, G channels of the
global mixer.
"""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
from torch import Tensor

from mobilemamba.ops.cross_scan import kept_scan_order
from mobilemamba.ops.haar_conv import call_wavelet
from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, I64, POINTER, kernel_dtype, lay_out
from mobilemamba.ops.selective_scan.native import Scan


class _DepthwiseArgs(ctypes.Structure):
    """``depthwise_args`` of depthwise.c."""

    _fields_ = [
        *((name, I64) for name in ("batch", "height", "width", "channels", "kernel", "type", "threads", "act")),
        *((name, POINTER) for name in ("x", "y")),
        *((name, I64 * 3) for name in ("x_stride", "y_stride")),
        *((name, POINTER) for name in ("weight", "bias", "scale", "shift")),
    ]


#: Activations as oneDNN names them.
Activation = Literal["none", "relu", "swish", "sigmoid"]
_ACTS = {"none": 0, "relu": 1, "swish": 2, "sigmoid": 3, "local": 4}  # ``activation`` of depthwise.c


def _call_depthwise(act: str, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *affine: Tensor) -> None:
    args = _DepthwiseArgs(*x.shape, weight.shape[0], DTYPE_CODES[x.dtype], torch.get_num_threads(), _ACTS[act])
    args.x, args.y, args.weight, args.bias = x.data_ptr(), y.data_ptr(), weight.data_ptr(), bias.data_ptr()
    args.x_stride[:], args.y_stride[:] = x.stride()[:3], y.stride()[:3]
    if affine:
        args.scale, args.shift = (number.data_ptr() for number in affine)
    library.library().mobilemamba_depthwise(ctypes.byref(args))


def depthwise_conv(x_BHWC: Tensor, weight_kkC: Tensor, bias: Tensor, act: Activation = "none") -> Tensor:
    """A depthwise convolution of stride 1 with zeros around and an activation; not for graphs.

    Args:
        x_BHWC: float32 or bfloat16.
        weight_kkC: float32, with an odd number of rows and columns.
        bias: (C,) float32.
        act: Activation of the result.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    x = lay_out(x_BHWC, kernel_dtype(x_BHWC.dtype))
    y = x.new_empty(x.shape)
    _call_depthwise(act, x, y, weight_kkC, bias)
    return y


@torch.library.custom_op("mobilemamba::scan_norm_gate", mutates_args=())
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
        dt_weight_KRD: Maps low-rank step sizes to channels; this and all that follow are float32.
        A_KDN: State matrix.
        D_KD: Skip weights.
        dt_bias_KD: Step-size bias.
        norm_weight: (D,) of the LayerNorm.
        norm_bias: (D,) of the LayerNorm.
        norm_eps: Of the LayerNorm.

    Returns:
        (B, H, W, D), of u's dtype.
    """
    directions, rank, _ = dt_weight_KRD.shape
    d_state = A_KDN.shape[-1]
    parts = projected_BHWC.float().flatten(1, 2).unflatten(2, (directions, -1)).transpose(1, 2)
    dt, B, C = parts.split([rank, d_state, d_state], dim=-1)
    order = kept_scan_order(directions, (u_BHWD.shape[1], u_BHWD.shape[2]))
    scan = Scan(u_BHWD.flatten(1, 2), dt, A_KDN, B, C, D_KD, dt_bias_KD, order, dt_weight_KRD)
    y = u_BHWD.new_empty(u_BHWD.shape, dtype=scan.dtype)
    scan.forward(y.flatten(1, 2), (norm_weight, norm_bias, norm_eps), gate_BHWD.flatten(1, 2))
    return y


@scan_norm_gate.register_fake
def _(u: Tensor, *_: Tensor | float) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("mobilemamba::mix_channels", mutates_args=())
def mix_channels(
    x_BHWC: Tensor, global_BHWG: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]
) -> Tensor:
    """MRFFI before its projection: the global part plus its wavelet branch, the local part, the rest; then ReLU.

    Args:
        x_BHWC: MRFFI's input, float32 or bfloat16.
        global_BHWG: What the state-space module makes of the first G channels.
        wavelet_weight: (4, kernel, kernel, G) float32 of the wavelet branch, or none.
        local_weights: Of each local convolution in turn its weight (kernel, kernel, c), bias, scale and shift (c,),
            float32.

    Returns:
        (B, H, W, C), of x's dtype.
    """
    dtype = kernel_dtype(x_BHWC.dtype)
    x, mixed = lay_out(x_BHWC, dtype), lay_out(global_BHWG, dtype)
    y = x.new_empty(x.shape)
    at = mixed.shape[-1]
    if wavelet_weight is None:
        torch.clamp_min(mixed, 0, out=y[..., :at])
    else:
        call_wavelet("mobilemamba_wavelet", x[..., :at], mixed, y[..., :at], wavelet_weight, relu=True)
    for i in range(0, len(local_weights), 4):
        part = slice(at, at + local_weights[i].shape[-1])
        _call_depthwise("local", x[..., part], y[..., part], *local_weights[i : i + 4])
        at = part.stop
    torch.clamp_min(x[..., at:], 0, out=y[..., at:])
    return y


@mix_channels.register_fake
def _(x: Tensor, mixed: Tensor, wavelet_weight: Tensor | None, local_weights: list[Tensor]) -> Tensor:
    return x.new_empty(x.shape)
