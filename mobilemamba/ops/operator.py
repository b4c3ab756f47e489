"""Registers functions as operators, which compilers and the flop counter see as a single node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import register_flop_formula

from mobilemamba.errors import ConfigError
from mobilemamba.ops.arguments import check
from mobilemamba.ops.backends import needs_reference
from mobilemamba.ops.transforms import refuse_forward_mode


def autocasts(device: torch.device) -> bool:
    """Returns whether autocast is on for a device; the meta device has none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which autocast does not change dtypes."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def in_turn(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Returns the rule by which ``vmap`` calls an operator: once for each of the batch, one after the other.

    PyTorch has such a rule itself, but only for operators without lists of tensors.
    """

    def rule(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def of_one(index: int) -> Any:
            return operator(*tree_map(lambda x, dim: x if dim is None else x.select(dim, index), args, dims))

        answers = list(map(of_one, range(info.batch_size)))
        return tree_map(lambda *parts: torch.stack(parts), *answers), tree_map(lambda _: 0, answers[0])

    return rule


def as_operator(
    name: str, function: Callable[..., Tensor], macs: Callable[..., int], layout: Mapping[str, str]
) -> Callable[..., Tensor]:
    """Registers a plain PyTorch function as the operator ``mobilemamba::name``, which saves only its inputs.

    It runs in fp32 (fp64 for fp64 input) whatever autocast says. Its backward pass runs the function once more and
    lets autograd compute the gradients.

    Args:
        name: Name of the operator.
        function: A differentiable function of tensors; its result has the shape of the first.
        macs: Returns the multiply-adds of one call, given the shapes of the tensors.
        layout: The tensors' names and shapes, as ``check`` takes them.

    Returns:
        A function that calls the operator on tensors; its result is contiguous and has the first tensor's shape and
        dtype. In an export, and for forward-mode and ``torch.func`` derivatives, which cannot look inside an operator,
        it calls the plain function instead, whose operators every format knows. It raises ConfigError for tensors that
        do not fit.
    """

    def plain(inputs: Sequence[Tensor]) -> Tensor:
        dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        return function(*(x.to(dtype) for x in inputs)).to(inputs[0].dtype)

    def exactly(inputs: Sequence[Tensor]) -> Tensor:
        with without_autocast(inputs[0].device):
            return plain(inputs)

    def compute(inputs: Sequence[Tensor]) -> Tensor:
        refuse_forward_mode(name)
        check(name, layout, inputs)
        return exactly(inputs).contiguous() if inputs[0].numel() else torch.empty_like(inputs[0])

    def on_shapes(inputs: Sequence[Tensor]) -> Tensor:
        check(name, layout, inputs)
        return torch.empty_like(inputs[0], memory_format=torch.contiguous_format)

    def save_inputs(ctx: Any, inputs: tuple[list[Tensor]], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[0])

    def gradients(ctx: Any, grad: Tensor) -> list[Tensor]:
        further = torch.is_grad_enabled()  # these gradients may be differentiated again
        leaves = [
            x.view_as(x) if further and x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors
        ]
        with torch.enable_grad():
            output = exactly(leaves) if grad.numel() else leaves[0] * 1
        return list(torch.autograd.grad(output, leaves, grad, create_graph=further, materialize_grads=True))

    forward = torch.library.custom_op(
        f"mobilemamba::{name}", compute, mutates_args=(), schema="(Tensor[] inputs) -> Tensor"
    )
    forward.register_fake(on_shapes)
    forward.register_autograd(gradients, setup_context=save_inputs)
    forward.register_vmap(in_turn(forward))
    # The flop counter's convention: a multiply-add is two operations.
    register_flop_formula(getattr(torch.ops.mobilemamba, name))(lambda shapes, **_: 2 * macs(*shapes))

    def call(*inputs: Tensor) -> Tensor:
        if not needs_reference("auto"):
            return forward(list(inputs))
        check(name, layout, inputs)
        return plain(inputs) if torch.compiler.is_exporting() else exactly(inputs)

    call.__name__, call.__doc__ = name, function.__doc__
    return call


_LIBRARY = torch.library.Library("mobilemamba", "FRAGMENT")


def inference_operator(
    check: Callable[..., object], shape: Callable[..., Sequence[int]] = lambda x, *args: x.shape
) -> Callable[[Callable[..., Tensor]], Any]:
    """Registers a CPU function without gradients as an operator, which is called in half the time of a ``custom_op``.

    Args:
        check: Called with the arguments first. The function's result must have the first argument's dtype.
        shape: Returns the result's shape, given the arguments; by default the first argument's.
    """

    def register(function: Callable[..., Tensor]) -> Any:
        name = function.__name__

        def on_shapes(x: Tensor, *args: Any) -> Tensor:
            check(x, *args)
            return x.new_empty(shape(x, *args))

        def without_gradients(*args: Any) -> Tensor:
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
                raise ConfigError(
                    f"{name} has no gradients; call it under torch.no_grad(), or train the original network"
                )
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args)

        _LIBRARY.define(f"{name}{torch.library.infer_schema(function, mutates_args=())}")
        _LIBRARY.impl(name, _checked(name, check, function), "CPU")
        _LIBRARY.impl(name, without_gradients, "Autograd")
        torch.library.register_fake(f"mobilemamba::{name}", on_shapes, lib=_LIBRARY)
        operator = getattr(torch.ops.mobilemamba, name).default
        torch.library.register_vmap(operator, in_turn(operator), lib=_LIBRARY)
        return operator

    return register


def implement_on_cuda(name: str, check: Callable[..., object], function: Callable[..., Tensor]) -> None:
    """Sets the function that computes an ``inference_operator`` for tensors on a GPU."""
    _LIBRARY.impl(name, _checked(name, check, function), "CUDA")


def _checked(name: str, check: Callable[..., object], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute(*args: Any) -> Tensor:
        refuse_forward_mode(name)
        check(*args)
        return function(*args)

    return compute
