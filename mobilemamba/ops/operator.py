"""A plain PyTorch function as one operator: compilers and the flop counter see a single node, and nothing is kept.

Inside it runs in fp32 (fp64 for fp64 input) whatever autocast says. Its backward runs the function once more and leaves
the gradients to autograd, so that training stores its inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def as_operator(
    name: str, function: Callable[..., Tensor], macs: Callable[..., int]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """Registers ``mobilemamba::name``.

    Args:
        name: The operator's.
        function: Differentiable; from tensors to one of the first's shape.
        macs: Multiply-adds of one call, from the shapes of the tensors.

    Returns:
        The operator on a list of tensors; its result has the first's shape and dtype, and is contiguous. An export
        gets the function's own operators instead, which every format knows. It has no second derivative.
    """

    def plain(inputs: Sequence[Tensor]) -> Tensor:
        dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        return function(*(x.to(dtype) for x in inputs)).to(inputs[0].dtype)

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        device = inputs[0].device.type
        without = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with without:  # there is none on the meta device
            return plain(inputs).contiguous()

    def save_inputs(ctx: Any, inputs: tuple[list[Tensor]], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[0])

    def gradients(ctx: Any, grad: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            output = compute(leaves)
        return list(torch.autograd.grad(output, leaves, grad, materialize_grads=True))

    forward = torch.library.custom_op(
        f"mobilemamba::{name}", compute, mutates_args=(), schema="(Tensor[] inputs) -> Tensor"
    )
    forward.register_fake(lambda inputs: torch.empty_like(inputs[0], memory_format=torch.contiguous_format))
    forward.register_autograd(gradients, setup_context=save_inputs)
    # The counter's convention: a multiply-add is two operations.
    register_flop_formula(getattr(torch.ops.mobilemamba, name))(lambda shapes, **_: 2 * macs(*shapes))

    def call(inputs: Sequence[Tensor]) -> Tensor:
        return plain(inputs) if torch.compiler.is_exporting() else forward(list(inputs))

    return call
