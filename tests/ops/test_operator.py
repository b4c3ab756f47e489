"""A function as one operator: its precision, its gradients, what compilers, exports and counters see of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mobilemamba.errors import ConfigError
from mobilemamba.ops.operator import as_operator

pytestmark = pytest.mark.kernels

dtypes_seen: list[torch.dtype] = []


def weighted_cumsum(x: Tensor, weight: Tensor) -> Tensor:
    dtypes_seen.append((x @ x.mT).dtype)
    return (x * weight).cumsum(-1)


LAYOUT = {"x": "ABC", "weight": "C"}
operator = as_operator("weighted_cumsum_for_tests", weighted_cumsum, lambda x, weight: 5 * x.numel(), LAYOUT)
NODE = "mobilemamba.weighted_cumsum_for_tests.default"


def call(x: Tensor, weight: Tensor) -> Tensor:
    return operator(x, weight)


@pytest.fixture
def inputs() -> list[Tensor]:
    return [torch.randn(2, 3, 4, requires_grad=True), torch.randn(4, requires_grad=True)]


def test_it_keeps_torch_s_rules_for_operators(inputs: list[Tensor]) -> None:
    call(*inputs)
    torch.library.opcheck(torch.ops.mobilemamba.weighted_cumsum_for_tests.default, (inputs,))


def test_gradients_are_the_function_s(inputs: list[Tensor]) -> None:
    weights = torch.randn(2, 3, 4)
    ours = torch.autograd.grad((call(*inputs) * weights).sum(), inputs)
    theirs = torch.autograd.grad((weighted_cumsum(*inputs) * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_an_input_without_gradient_gets_none(inputs: list[Tensor]) -> None:
    inputs[1] = inputs[1].detach()
    call(*inputs).sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is None


@pytest.mark.parametrize(
    ("given", "inside"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_precision_inside_and_out(inputs: list[Tensor], given: torch.dtype, inside: torch.dtype) -> None:
    dtypes_seen.clear()
    inputs = [x.detach().to(given).requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        output = call(*inputs)
        output.sum().backward()
    assert output.dtype == given
    assert [x.grad.dtype for x in inputs if x.grad is not None] == [given, given]
    assert dtypes_seen == [inside, inside]  # forward, and once more for the backward


def test_only_the_inputs_are_stored_for_the_backward(inputs: list[Tensor]) -> None:
    stored: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x.data_ptr()) or x, lambda x: x):
        call(*inputs)
    assert stored == [x.data_ptr() for x in inputs]


def test_compiled_with_its_backward_without_graph_breaks(inputs: list[Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, call))
    torch.testing.assert_close(ours, theirs)
    torch.compiler.reset()


def test_an_export_holds_plain_operators(inputs: list[Tensor]) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return call(x, weight)

    inputs = [x.detach() for x in inputs]
    program = torch.export.export(Module(), tuple(inputs))
    nodes = [str(node.target) for node in program.graph.nodes]
    assert "aten.cumsum.default" in nodes
    assert NODE not in nodes
    torch.testing.assert_close(program.module()(*inputs), call(*inputs))


def test_the_counter_takes_the_given_number(inputs: list[Tensor]) -> None:
    with FlopCounterMode(display=False) as counter:
        call(*(x.detach().to("meta") for x in inputs))
    assert counter.get_total_flops() == 2 * 5 * 24


def test_on_shapes_alone(inputs: list[Tensor]) -> None:
    """The meta device has no autocast to switch off."""
    leaves = [x.detach().to("meta").requires_grad_() for x in inputs]
    call(*leaves).sum().backward()
    assert [x.grad.shape for x in leaves if x.grad is not None] == [x.shape for x in inputs]


def test_what_does_not_fit_is_refused_by_every_way_to_it(inputs: list[Tensor]) -> None:
    raw = torch.ops.mobilemamba.weighted_cumsum_for_tests.default
    x, weight = inputs[0].detach(), torch.randn(1)  # which would broadcast
    ways: list[Callable[[], object]] = [
        lambda: raw([x, weight]),
        lambda: raw([x.to("meta"), weight.to("meta")]),
        lambda: torch.func.jvp(lambda x: call(x, weight), (x,), (x,)),
    ]
    for way in ways:
        with pytest.raises(ConfigError, match=r"weight has shape \(1,\); with the other arguments it must be \(4,\)"):
            way()
