"""Workloads: a case's network, prepared for use, and its pictures, as a function to call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import Tensor, nn

from mobilemamba.analysis.benchmark.cases import DTYPES, LAYOUTS, Case, is_file, own_size
from mobilemamba.analysis.benchmark.folding import fold_norms
from mobilemamba.analysis.benchmark.parts import lower_threshold, seconds_of_parts
from mobilemamba.dense import Detector, Segmenter
from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.models import for_inference, fuse_norms, load_network, load_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.fuse import count_batch_norms
from mobilemamba.models.inference.graphs import CudaGraphs
from mobilemamba.models.runtime import RUNNERS, runtime_of


@contextmanager
def silently() -> Iterator[None]:
    """Context manager and decorator that hides warnings of libraries, which the reader of a table cannot act on."""
    with warnings.catch_warnings(action="ignore"):
        yield


@dataclass(frozen=True)
class Workload:
    """Inference of one batch or one training step, ready to be called."""

    run: Callable[[], object]  # runs it once
    network: nn.Module  # the network that is run; for inference, after folding of norms
    held: Callable[[], Iterator[Tensor]]  # tensors that persist between calls, including the pictures
    #: For a detector: takes a number of rounds, and returns the median seconds of its parts.
    parts: Callable[[int], dict[str, float]] | None = None

    @property
    def batch_norms(self) -> int:
        return count_batch_norms(self.network)

    @property
    def held_bytes(self) -> int:
        """Total size of the distinct storages of ``held``, in bytes."""
        sizes: dict[int, int] = {}
        for tensor in self.held():
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            else:  # in a layout of oneDNN, which has no accessible storage
                sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        return sum(sizes.values())


class Workshop:
    """Builds workloads; those of the same network with different batch sizes share its weights."""

    def __init__(self) -> None:
        self._networks: dict[Case, nn.Module] = {}

    @silently()
    def build(self, case: Case) -> Workload:
        """Builds the workload of a case, whose layout must not be ``auto``."""
        generator = torch.Generator(case.device).manual_seed(0)
        pictures = torch.randn(case.batch, case.card.in_chans, *case.sides, generator=generator, device=case.device)
        pictures = pictures.contiguous(memory_format=LAYOUTS[case.layout])
        if case.train:
            return _training(case, pictures, generator)
        pictures = pictures.to(DTYPES[case.dtype])
        run_in = RUNNERS.get(case.mode)
        key = replace(case, batch=0, mode=case.mode if run_in else "")
        if key not in self._networks:
            if runtime_of(case.model):
                network, _ = load_network(case.model)
            else:
                network = run_in(_loaded(case).eval()) if run_in else _for_inference(case)
            if isinstance(network, Detector) and not is_file(case.model):
                lower_threshold(network, pictures)
            self._networks[key] = network
        return inference(self._networks[key], pictures, case.mode)


def inference(network: nn.Module, inputs: Tensor, mode: str = "eager") -> Workload:
    """Returns the workload of a network's inference; eager detectors also compute boxes, segmenters pixel classes.

    Args:
        network: Network in evaluation mode, on the device of the inputs.
        inputs: A batch.
        mode: ``eager``, ``compiled``, ``exported`` or ``graph``; a runtime's network is simply called.
    """
    detector = network if isinstance(network, Detector) and mode == "eager" else None
    call: Callable[[Tensor], Any] = network.labels if isinstance(network, Segmenter) else network
    call = detector.detect if detector else call
    with torch.no_grad():
        if mode == "compiled":
            call = _compiled(network)
        elif mode == "exported":
            call = torch.export.export(network, (inputs,)).module()
        elif mode == "graph":
            call = partial(CudaGraphs(), network)

    def run() -> object:
        with torch.inference_mode():
            return call(inputs)

    def held() -> Iterator[Tensor]:
        yield from (inputs, *network.parameters(), *network.buffers())

    return Workload(run, network, held, partial(seconds_of_parts, detector, inputs) if detector else None)


@silently()
def create(case: Case) -> nn.Module:
    """Creates the case's network in float32 on torch's default device, norms not folded, with random weights.

    Raises:
        TypeError: If the network cannot be built for pictures of this size.
    """
    card = case.card
    if not case.is_ours and not card.head and set(case.sides) != {own_size(case.model)}:
        try:  # networks with position embeddings must know the size; others do not take it
            return timm.create_model(
                card.model, num_classes=card.num_classes, in_chans=card.in_chans, img_size=case.sides
            )
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    network = build_network(card)
    use_scan_backend(network, case.scan_backend)
    return network


def _loaded(case: Case) -> nn.Module:
    network = create(case)
    if is_file(case.model):
        load_weights(network, case.model, verbose=False)
    return network


def _for_inference(case: Case) -> nn.Module:
    network, device, dtype = _loaded(case).eval(), torch.device(case.device), DTYPES[case.dtype]
    by_kernels = case.layout == "channels_last" and case.scan_backend in ("auto", "native", "triton")
    if case.fused and case.is_ours and by_kernels:
        network, _ = for_inference(network, device, dtype)
    elif case.fused and case.is_ours:
        network = fuse_norms(network)
    elif case.fused:
        pictures = torch.randn(1, case.card.in_chans, *case.sides, generator=torch.Generator().manual_seed(0))
        if isinstance(network, Detector):
            network = reparameterize_model(network)
            network.set_submodule("backbone", fold_norms(network.get_submodule("backbone"), pictures))
        else:
            network = fold_norms(network, pictures)
    return network.to(device, dtype).to(memory_format=LAYOUTS[case.layout]).requires_grad_(False)


def _compiled(network: nn.Module) -> Callable[[Tensor], Any]:
    """Compiles a network for one shape, with a separate cache.

    The compiler caches versions by code object and gives up at the ninth. Each case gets its own code object, as
    networks of the same class would otherwise share this limit.
    """

    def call(pictures: Tensor) -> Any:
        return network(pictures)

    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own, dynamic=False)


def _training(case: Case, pictures: Tensor, generator: torch.Generator) -> Workload:
    network = _loaded(case).to(case.device).to(memory_format=LAYOUTS[case.layout]).train()
    of_pixels = case.sides if case.card.task == "segmentation" else ()
    shape = case.batch, *of_pixels
    labels = torch.randint(case.card.num_classes, shape, generator=generator, device=case.device)
    fused = True if pictures.device.type == "cpu" else None  # as ``mobilemamba fit`` trains
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=fused)
    dtype = DTYPES[case.dtype]
    scaler = torch.amp.GradScaler(pictures.device.type, enabled=dtype == torch.float16)
    call = _compiled(network) if case.mode == "compiled" else network

    def run() -> object:
        with torch.autocast(pictures.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(call(pictures), labels, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    def held() -> Iterator[Tensor]:
        yield from (pictures, labels, *network.parameters(), *network.buffers())
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    return Workload(run, network, held)
