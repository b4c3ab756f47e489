"""The scan by the compiled CPU kernel: one pass, nothing flipped or copied, threads over pictures and channels.

All tensors are indexed by position and lie channels-last (BKLD): a direction is an order of visiting the positions.
Shape letters: B batch, K scan directions, D inner width, N state size, L length, R rank of dt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mobilemamba.ops.native import library
from mobilemamba.ops.native.arguments import DTYPE_CODES, kernel_dtype, lay_out
from mobilemamba.ops.native.structures import ScanArgs
from mobilemamba.ops.scan_order import scan_order
from mobilemamba.ops.selective_scan.definition import ScanInputs


class Scan:
    """One call of the kernel; keeps its arguments alive.

    Args:
        u: Inputs (B, K, L, D), or (B, L, D) if all directions share them.
        dt_BKLD: Step sizes before bias and softplus; (B, K, L, R) if ``dt_weight_KRD`` is given.
        A_KDN: State matrix.
        B_BKLN: Input projections, with any strides.
        C_BKLN: Output projections, with any strides.
        D_KD: Skip weights.
        bias_KD: Step-size bias.
        order_KL: int32; the positions in the order in which each direction visits them.
        dt_weight_KRD: Maps low-rank step sizes to the channels.
    """

    def __init__(
        self,
        u: Tensor,
        dt_BKLD: Tensor,
        A_KDN: Tensor,
        B_BKLN: Tensor,
        C_BKLN: Tensor,
        D_KD: Tensor,
        bias_KD: Tensor,
        order_KL: Tensor,
        dt_weight_KRD: Tensor | None = None,
    ):
        self.dtype = dtype = kernel_dtype(u.dtype)
        self.u, self.dt = lay_out(u, dtype), lay_out(dt_BKLD, dtype if dt_weight_KRD is None else torch.float32)
        self.B, self.C = B_BKLN.float(), C_BKLN.float()
        self.kept = [x.float().contiguous() for x in (A_KDN, D_KD, bias_KD)]
        self.kept.append(order_KL.contiguous())
        A, D, bias, order = self.kept
        batch, length, width = self.u.shape[0], *self.u.shape[-2:]
        directions, _, d_state = A.shape
        self.args = args = ScanArgs(batch, directions, width, d_state, length, 0, DTYPE_CODES[dtype])
        args.threads = torch.get_num_threads()
        args.order, args.A, args.skip, args.bias = (x.data_ptr() for x in (order, A, D, bias))
        args.u, args.dt, args.B, args.C = (x.data_ptr() for x in (self.u, self.dt, self.B, self.C))
        args.u_stride[:], args.dt_stride[:] = _strides(self.u), _strides(self.dt)
        args.B_stride[:], args.C_stride[:] = self.B.stride(), self.C.stride()
        if dt_weight_KRD is not None:
            self.kept.append(dt_weight_KRD.float().contiguous())
            args.dt_weight, args.rank = self.kept[-1].data_ptr(), self.dt.shape[-1]

    def forward(
        self, y: Tensor, norm: tuple[Tensor, Tensor, float] | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """Writes y: (B, K, L, D), or (B, L, D) for the sum over the directions.

        Args:
            y: Tensor to write to, with adjacent channels and the kernel's dtype.
            norm: Weight (D,), bias (D,) and epsilon of a LayerNorm over the channels of the sum.
            gate: (B, L, D), only with ``norm``: the result is multiplied by its SiLU.
        """
        args = self.args
        self._set_y(y)
        if norm is not None and gate is not None:
            weight, bias, args.norm_eps = norm
            weight, bias, gate = weight.float().contiguous(), bias.float().contiguous(), lay_out(gate, self.dtype)
            args.norm_weight, args.norm_bias, args.gate = weight.data_ptr(), bias.data_ptr(), gate.data_ptr()
            args.gate_stride[:] = gate.stride()[:2]
        library.call("mobilemamba_scan_forward", args)
        return y

    def backward(self, grad_y: Tensor) -> tuple[Tensor, ...]:
        """Returns the gradients of u, dt, A, B, C, D and bias; those of B and C as (B, L, K, N) in float32.

        Args:
            grad_y: Gradient of y, shaped as in ``forward``, with any strides; (B, L, D) if u is.
        """
        args = self.args
        grad_y = lay_out(grad_y, self.dtype)
        self._set_y(grad_y)
        A, D, bias, _ = self.kept
        grad_u, grad_dt = (x.new_empty_strided(x.shape, x.stride()) for x in (self.u, self.dt))
        grad_A, grad_D, grad_bias = (torch.empty_like(x) for x in (A, D, bias))
        grad_B, grad_C = (A.new_empty(args.batch, args.length, args.directions, args.d_state) for _ in range(2))
        partial = A.new_empty(library.scratch("mobilemamba_scan_scratch", args))
        args.grad_y, args.partial = grad_y.data_ptr(), partial.data_ptr()
        args.grad_u, args.grad_dt = grad_u.data_ptr(), grad_dt.data_ptr()
        args.grad_A, args.grad_skip, args.grad_bias = grad_A.data_ptr(), grad_D.data_ptr(), grad_bias.data_ptr()
        args.grad_B, args.grad_C = grad_B.data_ptr(), grad_C.data_ptr()
        library.call("mobilemamba_scan_backward", args)
        return grad_u, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_bias

    def _set_y(self, y: Tensor) -> None:
        self.args.y = y.data_ptr()
        self.args.y_stride[:] = _strides(y)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Returns the strides of picture, direction and position; the direction's is 0 if all share a tensor (B, L, D)."""
    stride = x.stride()
    return (stride[0], 0, stride[1]) if x.ndim == 3 else (stride[0], stride[1], stride[2])


@lru_cache(maxsize=64)
def _in_order(directions: int, length: int) -> Tensor:
    return torch.arange(length, dtype=torch.int32, device="cpu").expand(directions, length).contiguous()


def _scan(x: ScanInputs, size: Sequence[int]) -> Scan:
    order = scan_order(len(x.A), (size[0], size[1])) if size else _in_order(len(x.A), x.u.shape[-2])
    return Scan(*x, order)


def forward(x: ScanInputs, size: Sequence[int]) -> Tensor:
    """Scans by position."""
    scan = _scan(x, size)
    return scan.forward(x.u.new_empty(x.u.shape, dtype=scan.dtype))


def backward(grad_y: Tensor, x: ScanInputs, size: Sequence[int]) -> tuple[Tensor, ...]:
    """Returns the gradients of all seven inputs."""
    gu, gdt, gA, gB, gC, gD, gbias = _scan(x, size).backward(grad_y)
    return gu, gdt, gA, gB.transpose(1, 2), gC.transpose(1, 2), gD, gbias
