"""Measurement of the scan backends on the shapes that occur in the networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from mobilemamba.analysis.benchmark.cases import DTYPES, Case, card_of, own_size
from mobilemamba.analysis.benchmark.ceilings import matrix_product, memory_copy
from mobilemamba.analysis.benchmark.networks import Progress, counting, latency
from mobilemamba.analysis.benchmark.workload import create
from mobilemamba.analysis.machine import device_name, versions
from mobilemamba.analysis.timing import Clock, clock_of, interleave
from mobilemamba.errors import BackendUnavailableError, ConfigError, in_one_line
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.models import VARIANTS
from mobilemamba.ops.selective_scan import BACKENDS, scan_macs, selective_scan_2d


@dataclass(frozen=True)
class ScanShape:
    """Shape of a scan in a network: B, K, D, N, and H and W of the map."""

    batch: int
    directions: int
    width: int
    d_state: int
    height: int
    map_width: int
    device: str = "cpu"  # torch's name of the device
    dtype: str = "float32"  # dtype of the sequences, a key of ``DTYPES``


@dataclass(frozen=True, kw_only=True)
class ScanRecord(ScanShape):
    """Result of one backend on one shape; if it failed, ``error`` has the reason and measured values are None."""

    backend: str
    used_by: str  # the networks with such scans, and how many each has
    train: bool  # whether forward and backward, rather than only forward
    latency_ms: float | None  # median over the rounds
    latency_q1_ms: float | None  # first quartile
    latency_q3_ms: float | None  # third quartile
    gbytes_per_second: float | None  # inputs read and outputs written once, without intermediate results
    gflops_per_second: float | None  # by the operation counter's formula for the scan
    copy_gbytes_per_second: float | None  # of a large copy in the same rounds, counting reading and writing
    product_gflops_per_second: float | None  # of a large matrix product in the same rounds
    processor: str  # name of the device
    versions: str  # of the libraries
    error: str


def scan_shapes(cases: Iterable[Case]) -> dict[ScanShape, dict[str, int]]:
    """Finds the scans of networks by running them on the meta device, and how many of each a network has.

    Args:
        cases: Cases of mobilemamba models.

    Raises:
        ConfigError: If a network has no scan.
    """
    found: dict[ScanShape, dict[str, int]] = {}
    for model, size, batch, device, dtype in dict.fromkeys(
        (c.model, c.size, c.batch, c.device, c.dtype) for c in cases
    ):
        label = model.removeprefix("mobilemamba_") + (f"@{size}" if size != own_size(model) else "")
        shapes = _shapes_of(model, size)
        if not shapes:
            raise ConfigError(f"model {model!r} has no selective scan to time; expected one of: {', '.join(VARIANTS)}")
        for shape in shapes:
            users = found.setdefault(replace(shape, batch=batch, device=device, dtype=dtype), {})
            users[label] = users.get(label, 0) + 1
    return found


def _shapes_of(model: str, size: int) -> list[ScanShape]:
    shapes: list[ScanShape] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, SS2D)
        shapes.append(ScanShape(1, *module.A_log.shape, *inputs[0].shape[-2:]))

    with torch.device("meta"):
        network = create(Case(model, size)).eval()
    for module in network.modules():
        if isinstance(module, SS2D):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.empty(1, card_of(model).in_chans, size, size, device="meta"))
    return shapes


def scan_inputs(shape: ScanShape) -> list[Tensor]:
    """Returns random u, dt, A, B, C, D and dt_bias for ``selective_scan_2d``, as in networks; A is in float32."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(shape.device, DTYPES[shape.dtype])

    channels, length = (shape.directions, shape.width), shape.height * shape.map_width
    state = shape.batch, shape.directions, length, shape.d_state
    A = -torch.exp(torch.randn(*channels, shape.d_state, generator=generator)).to(shape.device)
    u, dt = random(shape.batch, length, shape.width), random(shape.batch, shape.directions, length, shape.width)
    return [u, dt, A, random(*state), random(*state), random(*channels), random(*channels)]


def scan_cost(shape: ScanShape, inputs: Sequence[Tensor], train: bool) -> tuple[int, int]:
    """Returns the bytes that must be moved, and the floating-point operations.

    The backward pass reads the output's gradient and the inputs again, and writes the inputs' gradients; it counts as
    three times the operations of the forward pass.
    """
    sizes = [tensor.nbytes for tensor in inputs]
    output = sizes[0]
    moved = sum(sizes) + output
    if train:
        moved += output + 2 * sum(sizes)
    length = shape.height * shape.map_width
    sequences = torch.Size((shape.batch, shape.directions, shape.width, length))
    operations = 2 * scan_macs(sequences, inputs[2].shape)
    return moved, operations * (4 if train else 1)


def measure_scans(
    cases: Sequence[Case],
    rounds: int = 15,
    seconds: float = 0.1,
    backends: Sequence[str] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[ScanRecord]:
    """Times the backends on all scans of networks in interleaved rounds, together with a copy and a matrix product.

    Args:
        cases: Cases of mobilemamba models, of which model, size, batch, device, dtype and ``train`` (forward and
            backward) are used.
        rounds: Number of rounds.
        seconds: Approximate time of each backend and shape per round.
        backends: Names of backends; by default all that run on the device.
        progress: Called with the progress.

    Raises:
        ConfigError: If a network has no scan, or a backend's name is unknown.
        BackendUnavailableError: If a backend given by name cannot run.
    """
    train = cases[0].train
    shapes = scan_shapes(cases)
    runs: dict[tuple[ScanShape, str], Callable[[], object]] = {}
    costs: dict[ScanShape, tuple[int, int]] = {}
    for shape in shapes:
        inputs = scan_inputs(shape)
        costs[shape] = scan_cost(shape, inputs, train)
        for name in backends or _that_run(shape):
            _choose(name, shape)
            runs[shape, name] = _scan(shape, inputs, name, train)
    places = dict.fromkeys((shape.device, shape.dtype) for shape in shapes)
    copies = {place: memory_copy(place[0]) for place in places}
    products = {place: matrix_product(*place) for place in places}
    clocks: dict[Hashable, Clock] = {
        **{(shape, name): clock_of(run, shape.device) for (shape, name), run in runs.items()},
        **{("copy", place): clock_of(run, place[0]) for place, (run, _) in copies.items()},
        **{("product", place): clock_of(run, place[0]) for place, (run, _) in products.items()},
    }
    timings, failed = interleave(clocks, rounds, seconds, min(seconds, 0.1), counting(progress, len(clocks), rounds))

    def record(shape: ScanShape, name: str) -> ScanRecord:
        found, place = timings.get((shape, name)), (shape.device, shape.dtype)
        copy, product = timings.get(("copy", place)), timings.get(("product", place))
        moved, operations = costs[shape]
        return ScanRecord(
            backend=name,
            used_by=" ".join(f"{user}x{count}" for user, count in shapes[shape].items()),
            **asdict(shape),
            train=train,
            **latency(found),
            gbytes_per_second=moved / found.median / 1e9 if found else None,
            gflops_per_second=operations / found.median / 1e9 if found else None,
            copy_gbytes_per_second=copies[place][1] / copy.median / 1e9 if copy else None,
            product_gflops_per_second=2 * products[place][1] / product.median / 1e9 if product else None,
            processor=device_name(shape.device),
            versions=versions(),
            error=in_one_line(failed[shape, name]) if (shape, name) in failed else "",
        )

    return [record(shape, name) for shape, name in runs]


def _choose(backend: str, shape: ScanShape) -> str:
    return BACKENDS.choose(backend, torch.device(shape.device), DTYPES[shape.dtype], d_state=shape.d_state).name


def _that_run(shape: ScanShape) -> list[str]:
    names = []
    for name in BACKENDS.by_name:
        with contextlib.suppress(BackendUnavailableError):
            names.append(_choose(name, shape))
    return names[:-1]  # without the definition, which is for tests


def _scan(shape: ScanShape, inputs: Sequence[Tensor], backend: str, train: bool) -> Callable[[], object]:
    def scan(inputs: Sequence[Tensor]) -> Tensor:
        u, dt, A, B, C, D, dt_bias = inputs
        return selective_scan_2d(u, dt, A, B, C, D, dt_bias, (shape.height, shape.map_width), backend)

    def forward() -> object:
        with torch.inference_mode():
            return scan(inputs)

    if not train:
        return forward
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    grad = torch.ones_like(leaves[0])
    return lambda: torch.autograd.grad(scan(leaves), leaves, grad)
