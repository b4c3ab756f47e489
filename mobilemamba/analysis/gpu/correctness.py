"""Compares kernels with their definitions in double precision, and networks on a GPU with the same on a CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.analysis.benchmark.cases import DTYPES, Case
from mobilemamba.analysis.benchmark.scans import ScanShape, scan_inputs
from mobilemamba.analysis.benchmark.workload import create
from mobilemamba.analysis.gpu.machine import rounded_to_tf32
from mobilemamba.analysis.gpu.run import Run
from mobilemamba.models import for_inference
from mobilemamba.models.inference.graphs import CudaGraphs
from mobilemamba.ops.selective_scan import BACKENDS, definition, expand_dt, selective_scan_2d
from mobilemamba.ops.selective_scan.definition import ScanInputs
from mobilemamba.ops.wavelet import wavelet_conv
from mobilemamba.ops.wavelet.definition import haar_filters

#: Largest |y - y'| / |y| of one operation and of a network; in half precision twice that with norms as trained.
OPERATION = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
NETWORK = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_AS_IT_IS = "as it is"
_NAMES = ("y", "u", "dt", "A", "B", "C", "D", "dt_bias", "dt_weight")


@rounded_to_tf32(on=False)
def scans(run: Run) -> None:
    """Checks the output and all gradients of the scan over shapes and dtypes, twice, in poisoned memory."""
    shapes, worst = scan_shapes(run), dict[str, float]()
    for number, shape in enumerate(shapes):
        if not run.has_time(2, f"{len(shapes) - number} of {len(shapes)} shapes of the scan"):
            break
        with run.trying(f"scan {_short(shape)}"):
            errors, same = check_scan(shape)
            run.add(**vars(shape), errors=errors, same_bits=same)
            worst[shape.dtype] = max(worst.get(shape.dtype, 0.0), *errors.values())
            bad = [name for name, error in errors.items() if not error <= OPERATION[shape.dtype]]
            bad += ["bits"] * (not same)
            if bad:
                run.find(f"scan {_short(shape)}", f"wrong: {', '.join(bad)}", "right", ok=False)
    backend = BACKENDS.choose("auto", run.device, torch.float32).name
    for dtype, error in worst.items():
        found = f"{error:.1e} at worst, by {backend}"
        run.find(f"scan and gradients, {dtype}", found, f"<= {OPERATION[dtype]:g}", error <= OPERATION[dtype])
    if run.has_time(5, "opcheck"):
        with run.trying("opcheck of the scan"):  # which raises what it finds
            inputs = [x.requires_grad_() for x in scan_inputs(ScanShape(2, 2, 32, 1, 3, 3, str(run.device)))]
            torch.library.opcheck(torch.ops.mobilemamba.selective_scan.default, (*inputs, 3, 3, "auto"))
            run.find("opcheck of the scan", "SUCCESS", "SUCCESS", ok=True)


def scan_shapes(run: Run) -> list[ScanShape]:
    """Returns every length in every dtype with the networks' settings, widths in turn, then all other combinations."""
    sizes, found = run.sizes, list[tuple[int, int, int, int, str]]()
    for dtype in sizes.dtypes:
        for number, length in enumerate(sizes.lengths):
            width = sizes.widths[number % len(sizes.widths)]
            found.append((sizes.directions[0], width, sizes.states[0], length, dtype))
    length = sizes.lengths[min(1, len(sizes.lengths) - 1)]
    found += [(max(sizes.directions), sizes.widths[0], max(sizes.states), length, dtype) for dtype in sizes.dtypes]
    found += [(k, d, n, length, "float32") for k in sizes.directions for d in sizes.widths for n in sizes.states]
    return [
        ScanShape(2, k, d, n, *_sides(length), str(run.device), dtype)
        for k, d, n, length, dtype in dict.fromkeys(found)
    ]


def _sides(length: int) -> tuple[int, int]:
    height = next(side for side in range(math.isqrt(length), 0, -1) if length % side == 0)
    return height, length // height


def _short(shape: ScanShape) -> str:
    return f"K{shape.directions} D{shape.width} N{shape.d_state} {shape.height}x{shape.map_width} {shape.dtype}"


def check_scan(shape: ScanShape) -> tuple[dict[str, float], bool]:
    """Returns relative errors of output and gradients against the float64 definition, and whether a rerun is equal."""
    inputs, size = check_inputs(shape), (shape.height, shape.map_width)
    grad = _alike(inputs[0])
    with poisoned():
        first, second = (with_gradients(partial(_scan, size), inputs, grad) for _ in range(2))
    exact = [x.double() for x in inputs]
    expected = with_gradients(partial(_by_definition, size), exact, grad.double())
    errors = {name: error_of(x, y) for name, x, y in zip(_NAMES, first, expected, strict=False)}
    return errors, all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def check_inputs(shape: ScanShape) -> list[Tensor]:
    """Returns the inputs of a scan; with one state, as in the networks, low-rank step sizes and their weight too."""
    inputs = scan_inputs(shape)
    if shape.d_state > 1:
        return inputs
    rank, generator = -(-shape.width // 32), torch.Generator().manual_seed(2)
    weight = torch.randn(shape.directions, rank, shape.width, generator=generator) / rank**0.5
    inputs[1] = inputs[1][..., :rank].contiguous()
    return [*inputs, weight.to(inputs[1])]


def run_scan(shape: ScanShape) -> None:
    """Runs the scan of ``check_scan`` once, with its gradients."""
    inputs = check_inputs(shape)
    with_gradients(partial(_scan, (shape.height, shape.map_width)), inputs, _alike(inputs[0]))


def _alike(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


def _scan(size: tuple[int, int], *inputs: Tensor) -> Tensor:
    u, dt, A, B, C, D, dt_bias, *dt_weight = inputs
    return selective_scan_2d(u, dt, A, B, C, D, dt_bias, size, "auto", *dt_weight)


def _by_definition(size: tuple[int, int], *inputs: Tensor) -> Tensor:
    u, dt, A, B, C, D, dt_bias, *dt_weight = inputs
    return definition.forward(ScanInputs(u, expand_dt(dt, *dt_weight) if dt_weight else dt, A, B, C, D, dt_bias), size)


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns a function's output, then its gradients by all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def error_of(found: Tensor, expected: Tensor) -> float:
    """Returns |found - expected| / |expected|, infinity if that is not finite."""
    found, expected = found.double(), expected.double()
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills new memory with NaN in this context, so that elements an operation fails to write show."""
    filling: Any = torch.utils.deterministic
    before, fills = torch.are_deterministic_algorithms_enabled(), filling.fill_uninitialized_memory
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = True
    try:
        yield
    finally:
        filling.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before, warn_only=warns)


@rounded_to_tf32(on=False)
def networks(run: Run) -> None:
    """Compares whole networks with the same on the CPU in float32: as they are, laid out, and by CUDA graphs.

    Before them their wavelet branch in training, whose gradients are a small part of a network's.
    """
    for dtype in run.sizes.dtypes:
        what, goal = f"wavelet and gradients, {dtype}", OPERATION[dtype]
        with run.trying(what):
            error = max(check_wavelet(run, dtype, kernel) for kernel in (3, 5, 7))
            run.find(what, f"{error:.1e}", f"<= {goal:g}", error <= goal)
    for name in run.sizes.ours:
        if run.has_time(8, f"{name} against the CPU"):
            _outputs_against_cpu(run, name)
    if run.has_time(10, "gradients against the CPU"):
        name = run.sizes.ours[0]
        with run.trying(f"{name} gradients float32"):
            error = _gradients_against_cpu(run, name)
            run.find(f"{name} gradients float32", f"{error:.1e}", "<= 0.001", error <= 1e-3)


def _outputs_against_cpu(run: Run, name: str) -> None:
    size = run.sizes.size_of(name)
    network = as_if_trained(create(Case(name, size)), size)
    pictures = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pictures)
    for dtype in run.sizes.dtypes:
        for form, call in _forms(run, network, DTYPES[dtype]).items():
            with run.trying(f"{name} {dtype}, {form}"), torch.inference_mode():
                x = pictures.to(run.device, DTYPES[dtype], memory_format=torch.channels_last)
                for _ in range(2):  # a graph's second call is its first pure replay
                    error = error_of(call(x).cpu(), expected)
                goal = NETWORK[dtype] * (2 if form == _AS_IT_IS and dtype != "float32" else 1)
                run.add(model=name, dtype=dtype, form=form, error=error)
                run.find(f"{name} {dtype}, {form}", f"{error:.1e}", f"<= {goal:g}", error <= goal)


def check_wavelet(run: Run, dtype: str, kernel: int) -> float:
    """Returns the largest error of the convolution in Haar's wavelet domain and of its two gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 7, 10, generator=generator).to(run.device, DTYPES[dtype], memory_format=torch.channels_last)
    weight = torch.randn(160, 1, kernel, kernel, generator=generator).to(x) / kernel

    def convolve(x: Tensor, weight: Tensor, backend: str = "auto") -> Tensor:
        filters = haar_filters(x.shape[1], x)
        return wavelet_conv(x, weight, filters, filters, backend)

    with poisoned():
        found = with_gradients(convolve, [x, weight], _alike(x))
    exact = with_gradients(partial(convolve, backend="reference"), [x.double(), weight.double()], _alike(x).double())
    return max(map(error_of, found, exact))


def _forms(run: Run, network: nn.Module, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Any]]:
    laid_out, how = for_inference(network, run.device, dtype)
    plain = copy.deepcopy(network).to(run.device, dtype).to(memory_format=torch.channels_last)
    forms: dict[str, Callable[[Tensor], Any]] = {_AS_IT_IS: plain, how: laid_out}
    return forms | ({"CUDA graph": partial(CudaGraphs(), laid_out)} if run.has_graphs else {})


def _gradients_against_cpu(run: Run, name: str) -> float:
    size = run.sizes.size_of(name)
    network = as_if_trained(create(Case(name, size)), size).train()
    pictures = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    here, there = (
        torch.cat([g.flatten().cpu() for g in gradients(copy.deepcopy(network).to(device), pictures.to(device))])
        for device in ("cpu", run.device)
    )
    return error_of(there, here)


def gradients(network: nn.Module, pictures: Tensor) -> list[Tensor]:
    """Returns the gradients of a training step's loss by all weights that have one."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    outputs = network(pictures)
    labels = torch.arange(len(pictures), device=pictures.device) % outputs.shape[-1]
    return list(torch.autograd.grad(F.cross_entropy(outputs.float(), labels), weights))


@torch.no_grad()
def as_if_trained(network: nn.Module, size: int) -> nn.Module:
    """Returns the network in evaluation mode, its norms as if trained: freshly made ones silence residual branches."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.3, 0.9, generator=generator)
    network.train()(torch.randn(4, 3, size, size, generator=generator))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()
