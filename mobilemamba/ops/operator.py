"""A plain PyTorch function as one operator: compilers and the flop counter see a single node, and nothing is kept.

Inside it runs in fp32 (fp64 for fp64 input) whatever autocast says. Its backward runs the function once more and leaves
the gradients to autograd, so that training stores its inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mobilemamba.ops.arguments import check
from mobilemamba.ops.transforms import refuse_forward_mode, transforming


def as_operator(
    name: str, function: Callable[..., Tensor], macs: Callable[..., int], layout: Mapping[str, str]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """Registers ``mobilemamba::name``.

    Args:
        name: The operator's.
        function: Differentiable; from tensors to one of the first's shape.
        macs: Multiply-adds of one call, from the shapes of the tensors.
        layout: The tensors' names and shapes, as ``check`` takes them.

    Returns:
        The operator on a list of tensors; its result has the first's shape and dtype, and is contiguous. An export
        gets the function's own operators instead, which every format knows, and so do forward-mode derivatives and
        those of ``torch.func``, which see nothing of an operator's inside. Raises ConfigError for tensors that do not
        fit.
    """

    def plain(inputs: Sequence[Tensor]) -> Tensor:
        dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        return function(*(x.to(dtype) for x in inputs)).to(inputs[0].dtype)

    def without_autocast(inputs: Sequence[Tensor]) -> Tensor:
        device = inputs[0].device.type
        without = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with without:  # there is none on the meta device
            return plain(inputs)

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        refuse_forward_mode(name)
        check(name, layout, inputs)
        return without_autocast(inputs).contiguous() if inputs[0].numel() else torch.empty_like(inputs[0])

    def on_shapes(inputs: Sequence[Tensor]) -> Tensor:
        check(name, layout, inputs)
        return torch.empty_like(inputs[0], memory_format=torch.contiguous_format)

    def save_inputs(ctx: Any, inputs: tuple[list[Tensor]], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[0])

    def gradients(ctx: Any, grad: Tensor) -> list[Tensor]:
        further = torch.is_grad_enabled()  # derivatives of these gradients may be asked for
        leaves = [
            x.view_as(x) if further and x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors
        ]
        with torch.enable_grad():
            output = without_autocast(leaves) if grad.numel() else leaves[0] * 1
        return list(torch.autograd.grad(output, leaves, grad, create_graph=further, materialize_grads=True))

    forward = torch.library.custom_op(
        f"mobilemamba::{name}", compute, mutates_args=(), schema="(Tensor[] inputs) -> Tensor"
    )
    forward.register_fake(on_shapes)
    forward.register_autograd(gradients, setup_context=save_inputs)
    # The counter's convention: a multiply-add is two operations.
    register_flop_formula(getattr(torch.ops.mobilemamba, name))(lambda shapes, **_: 2 * macs(*shapes))

    def call(inputs: Sequence[Tensor]) -> Tensor:
        exporting = torch.compiler.is_exporting()
        if exporting or transforming():
            check(name, layout, inputs)
            return plain(inputs) if exporting else without_autocast(inputs)
        return forward(list(inputs))

    return call
