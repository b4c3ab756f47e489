"""The arguments of the compiled kernels as ctypes structures; the C sources explain their fields."""

from __future__ import annotations

import ctypes

I64 = ctypes.c_int64
POINTER = ctypes.c_void_p


class ScanArgs(ctypes.Structure):
    """Arguments of the functions of scan.c."""

    _fields_ = [
        *((name, I64) for name in ("batch", "directions", "width", "d_state", "length", "rank", "type", "threads")),
        *((name, POINTER) for name in ("order", "u", "dt", "B", "C", "A", "skip", "bias", "dt_weight", "y")),
        ("u_stride", I64 * 3),
        ("dt_stride", I64 * 3),
        ("B_stride", I64 * 4),
        ("C_stride", I64 * 4),
        ("y_stride", I64 * 3),
        ("norm_weight", POINTER),
        ("norm_bias", POINTER),
        ("norm_eps", ctypes.c_double),
        ("gate", POINTER),
        ("gate_stride", I64 * 2),
        *((name, POINTER) for name in ("grad_y", "grad_u", "grad_dt", "grad_A", "grad_skip", "grad_bias")),
        *((name, POINTER) for name in ("grad_B", "grad_C", "partial")),
    ]


class WaveletArgs(ctypes.Structure):
    """Arguments of the functions of wavelet.c."""

    _fields_ = [
        *((name, I64) for name in ("batch", "height", "width", "channels", "kernel", "type", "threads", "relu")),
        *((name, POINTER) for name in ("x", "other", "y")),
        *((name, I64 * 3) for name in ("x_stride", "other_stride", "y_stride")),
        *((name, POINTER) for name in ("weight", "grad_weight")),
    ]


class DepthwiseArgs(ctypes.Structure):
    """Arguments of the function of depthwise.c."""

    _fields_ = [
        *((name, I64) for name in ("batch", "height", "width", "channels", "y_height", "y_width", "kernel", "stride")),
        *((name, I64) for name in ("type", "threads", "act")),
        *((name, POINTER) for name in ("x", "y")),
        *((name, I64 * 3) for name in ("x_stride", "y_stride")),
        *((name, POINTER) for name in ("weight", "bias", "scale", "shift")),
    ]


class NormArgs(ctypes.Structure):
    """Arguments of the functions of batch_norm.c."""

    _fields_ = [
        *((name, I64) for name in ("pixels", "channels", "type", "relu", "threads")),
        *((name, POINTER) for name in ("x", "y", "weight", "bias")),
        ("eps", ctypes.c_double),
        *((name, POINTER) for name in ("mean", "variance", "inverse", "partial")),
        *((name, POINTER) for name in ("grad_y", "grad_x", "grad_weight", "grad_bias")),
    ]


#: The structures by their names in C.
STRUCTURES = {
    "scan_args": ScanArgs,
    "wavelet_args": WaveletArgs,
    "depthwise_args": DepthwiseArgs,
    "norm_args": NormArgs,
}
