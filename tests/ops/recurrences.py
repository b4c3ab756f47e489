"""Comparing a fast form of a recurrence with the loop that defines it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: One step; less than, exactly and more than a chunk of 16; the maps of 7 x 7, 14 x 14 and 15 x 15; over 256.
LENGTHS = (1, 7, 16, 17, 49, 196, 225, 300)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((function(*inputs) * weights).sum(), inputs, materialize_grads=True)


def assert_same(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float = 1e-9,
) -> None:
    """Output and every gradient as the reference has them."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output, expected = function(*inputs), reference(*inputs)
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(expected)
    pairs = zip(gradients(function, inputs, weights), gradients(reference, inputs, weights), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text, i=i: f"gradient of argument {i}: {text}"
        )
