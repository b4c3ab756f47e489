"""The part of SS2D between its projections by two Triton kernels: scan with step sizes, then LayerNorm and gate.

The norm is over all channels of a position, whereas a program of the scan has only some. Without gradients.
"""

# The kernel's arguments have no annotations, because Triton would interpret them.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from mobilemamba.ops import jit
from mobilemamba.ops.operator import implement_on_cuda
from mobilemamba.ops.scan_norm_gate import native
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.selective_scan.triton import forward

tl: Any = None  # triton.language, set when the kernel is first needed
constexpr = Any  # Triton goes by the annotation's name


def _norm_gate(
    x, gate, weight, bias, eps, y, length, channels, gate_stride_b, gate_stride_l, gate_stride_d, BLOCK: constexpr
):
    """``y = LayerNorm(x) * SiLU(gate)``; a program computes one position."""
    row, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    has_d = d < channels
    x_d = tl.load(x + row * channels + d, has_d, 0.0).to(tl.float32)
    weight_d, bias_d = tl.load(weight + d, has_d, 0.0), tl.load(bias + d, has_d, 0.0)
    gate += row // length * gate_stride_b + row % length * gate_stride_l + d * gate_stride_d
    gate_d = tl.load(gate, has_d, 0.0).to(tl.float32)
    centred_d = tl.where(has_d, x_d - tl.sum(x_d, 0) / channels, 0.0)
    variance = tl.sum(centred_d * centred_d, 0) / channels
    normed_d = centred_d / tl.sqrt(variance + eps) * weight_d + bias_d
    tl.store(y + row * channels + d, normed_d * (gate_d / (1 + tl.exp(-gate_d))), has_d)


@cache
def _kernels() -> list[Any]:
    return jit.compiled(globals(), _norm_gate)


def compute(
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
    """Computes the operator on a GPU; arguments and result as in ``mobilemamba.ops.scan_norm_gate.definition``."""
    dt, B, C = native.split_projected(projected_BHWC, dt_weight_KRD, A_KDN)
    inputs = ScanInputs(u_BHWD.flatten(1, 2), dt, A_KDN, B, C, D_KD, dt_bias_KD)
    scanned_BLD = forward(inputs, u_BHWD.shape[1:3], dt_weight_KRD)
    batch, length, width = scanned_BLD.shape
    gate, y = gate_BHWD.flatten(1, 2), u_BHWD.new_empty(u_BHWD.shape)
    weight, bias = (v.float().contiguous() for v in (norm_weight, norm_bias))
    block = jit.padded(width)
    jit.launch(
        _kernels()[0],
        (batch * length,),
        scanned_BLD,
        gate,
        weight,
        bias,
        norm_eps,
        y,
        length,
        width,
        *gate.stride(),
        BLOCK=block,
        num_warps=min(max(block // 1024, 1), 32),  # a single warp need not wait for the sums of others
    )
    return y


implement_on_cuda("scan_norm_gate", native.check_arguments, compute)

BACKEND = jit.backend(native.scan_norm_gate)  # the same operator serves all devices
