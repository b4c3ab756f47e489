"""Lays networks out for inference on a CPU or a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.models.inference.graphs import CudaGraphs
from mobilemamba.models.inference.layers import InferenceFFN, replacement
from mobilemamba.models.inference.packed import PackedConv
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.replace import replace_layers
from mobilemamba.models.runtime import RUNNERS, RuntimeNetwork
from mobilemamba.ops.backends import Backends
from mobilemamba.ops.kernels import INFERENCE
from mobilemamba.ops.scan_norm_gate import scan_norm_gate

Model = TypeVar("Model", bound=nn.Module)
#: Dtypes of networks laid out for inference, by device type.
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
#: Operations whose kernels a layout uses, by device type.
_TABLES: dict[str, tuple[Backends, ...]] = {"cpu": INFERENCE, "cuda": (scan_norm_gate,)}


@torch.inference_mode(mode=False)  # inference tensors have no version counter
@torch.no_grad()
def optimize_for_inference(
    model: Model, dtype: torch.dtype = torch.float32, cuda_graph: bool = False, runtime: str | None = None
) -> Model:
    """Returns a copy with norms folded, weights packed for its device's kernels and element-wise steps fused.

    The copy has the model's class and interface, but neither gradients nor the checkpoint's names: save the original.
    It takes pictures (B, in_chans, H, W) of ``dtype`` on the model's device in any memory format; channels-last is
    fastest. Layers that have no fast form, such as other token mixers, stay as they are.

    Its outputs y are those y' of the original in float32 up to rounding: |y - y'| / |y'| is at most 1e-5 in float32 (on
    a GPU 1e-2 if PyTorch may round to TF32), 1e-1 in bfloat16 and 2e-2 in float16, for the six sizes.

    *On a CPU*, oneDNN computes the convolutions and compiled kernels the rest. ``torch.compile`` leaves the copy alone,
    as it would undo the layout; ``torch.export`` takes it. Large batches gain from ``keep_freed_memory``.

    *On a GPU*, 1x1 convolutions are matrix products (so PyTorch's setting for those decides whether float32 is rounded
    to TF32), and Triton computes step sizes, scan, LayerNorm and gate. Move the model there first.

    If the kernels cannot be used, or the model's ``scan_backend`` is the reference, the copy is that of ``fuse_norms``,
    and a warning says why.

    Args:
        model: A MobileMamba, or any module built of this package's layers, on a CPU or a GPU.
        dtype: Dtype of weights and activations: float32, bfloat16 or, on a GPU, float16; the scan accumulates in
            float32.
        cuda_graph: Whether ``forward`` launches all kernels at once on a GPU, by a CUDA graph captured for the first
            batch of each size; see :class:`~mobilemamba.models.inference.graphs.CudaGraphs`, the copy's ``graphs``. It
            pays where the host cannot keep up: small batches, small pictures. Hooks run only during the capture.
        runtime: ``onnxruntime``, ``openvino``, ``litert``, ``executorch`` or ``ncnn``, to run there in float32 on the
            CPU instead of in PyTorch. The result then is not of the model's class but
            :class:`~mobilemamba.export.in_runtime.InRuntime`, and the first pictures of each size wait half a minute
            for an export.

    Raises:
        ConfigError: If the model is on another device or on several, the dtype is another, a CUDA graph is asked for
            without CUDA, or the runtime is unknown or not installed.
    """
    device = _device_of(model)
    if runtime is not None:
        if runtime not in RUNNERS:
            raise ConfigError(f"optimize_for_inference: runtime={runtime!r}; expected {' or '.join(RUNNERS)}")
        if device.type != "cpu" or dtype != torch.float32 or cuda_graph:
            asked = f"{dtype} on {device}" + (" by CUDA graphs" if cuda_graph else "")
            raise ConfigError(f"optimize_for_inference: runtime={runtime!r} with {asked}; expected float32 on the cpu")
        return cast("Model", RUNNERS[runtime](model))
    if dtype not in DTYPES[device.type]:
        known = " or ".join(map(str, DTYPES[device.type]))
        raise ConfigError(f"optimize_for_inference: dtype={dtype} on {device.type}; expected {known}")
    if cuda_graph and device.type != "cuda":
        raise ConfigError(f"optimize_for_inference: cuda_graph with the model on {device}; move it to cuda first")
    if reason := _why_not(model, device, dtype):
        warnings.warn(f"optimize_for_inference: norms are folded, and no more: {reason}", stacklevel=4)
        optimized = _folded(model).to(device, dtype).requires_grad_(requires_grad=False)
    else:
        optimized = lay_out(model, device, dtype)
    return with_graphs(optimized, CudaGraphs()) if cuda_graph else optimized


def for_inference(
    network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32, cuda_graph: bool = False
) -> tuple[nn.Module, str]:
    """Returns a copy of the network in the form that is fastest on a device.

    Args:
        network: The network, on the CPU or on the device.
        device: Device to run on.
        dtype: Dtype of its weights and pictures.
        cuda_graph: Whether to call a MobileMamba on a GPU by CUDA graphs where successive batches have the same size.

    Returns:
        The copy, on the device; and a description of what was done to it, and why no more.
    """
    if isinstance(network, RuntimeNetwork):
        return network, network.how
    how = "norms folded"
    if device.type in DTYPES and any(isinstance(module, MobileMamba) for module in network.modules()):
        known = dtype in DTYPES[device.type]
        reason = _why_not(network, device, dtype) if known else f"it is to run in {dtype}"
        if reason is None:
            there = all(x.device == device for x in network.parameters())
            laid_out = lay_out(network if there else fuse_norms(network).to(device), device, dtype)  # moves the copy
            if not cuda_graph or device.type != "cuda" or not isinstance(network, MobileMamba):
                return laid_out, "optimized for inference"
            return with_graphs(laid_out, CudaGraphs(at_once=False)), "optimized for inference, by CUDA graphs"
        how = f"norms folded, not optimized for inference: {reason}"
    return _folded(network).to(device, dtype).to(memory_format=torch.channels_last), how


@torch.inference_mode(mode=False)
@torch.no_grad()
def lay_out(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """Returns the copy that ``optimize_for_inference`` makes for a device with the kernels, without CUDA graphs.

    Args:
        model: The network, on that device.
        device: Device whose kernels are used.
        dtype: Dtype of weights and activations.
    """
    optimized = _folded(model).requires_grad_(requires_grad=False)
    for layer in optimized.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # not the scan's parameters: its kernel takes float32
            layer.to(dtype)
    replace_layers(optimized, partial(replacement, device=device, dtype=dtype))
    if device.type == "cpu":
        cls: Any = type(optimized)
        optimized.__class__ = _optimized(cls)
        return optimized.to(dtype)
    _add_in_place(optimized)
    return optimized.to(dtype).to(memory_format=torch.channels_last)


def with_graphs(model: Model, graphs: CudaGraphs) -> Model:
    """Makes a network's ``forward`` run by CUDA graphs; it must take one tensor, and loses its gradients."""
    model.requires_grad_(requires_grad=False)
    model.__class__ = _graphed(_original(type(model)))
    model.__dict__["graphs"] = graphs
    return model


def _folded(model: Model) -> Model:
    """Returns the copy of ``fuse_norms``, without what an earlier call of ``optimize_for_inference`` has added."""
    folded = fuse_norms(model)
    folded.__dict__.pop("graphs", None)
    folded.__class__ = _original(type(model))
    return folded


def _device_of(model: nn.Module) -> torch.device:
    devices = list(dict.fromkeys(x.device for x in (*model.parameters(), *model.buffers())))
    if len(devices) > 1 or not devices or devices[0].type not in DTYPES:
        places = " and ".join(map(str, devices)) or "no device"
        raise ConfigError(f"optimize_for_inference: the model is on {places}; move it to the cpu or to cuda first")
    return devices[0]


def _why_not(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why a network cannot be laid out, or None if it can."""
    if any(getattr(layer, "backend", None) == "reference" for layer in model.modules()):
        return "scan_backend='reference' is for no kernel at all"
    for table in _TABLES[device.type]:
        for reason in table.explain("auto", device, dtype).refused.values():
            return reason
    return None


def _original(cls: Any) -> Any:
    """Returns the class that an optimized class was derived from, or the class itself."""
    return getattr(cls, "optimized_from", cls)


@cache
def _optimized(cls: Any) -> Any:
    """Derives the class of copies laid out for a CPU, which ``torch.compile`` leaves alone."""
    return _derived(cls, _optimized, forward=torch.compiler.disable(cls.forward))


@cache
def _graphed(cls: Any) -> Any:
    """Derives the class of copies that run by CUDA graphs; changing the weights clears those, which read old ones."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.graphs(partial(cls.forward, self), x)

    def forgetful(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.graphs.clear()
            return getattr(cls, name)(self, *args, **kwargs)

        return call

    changes = [name for name in ("_apply", "load_state_dict", "reset_classifier") if hasattr(cls, name)]
    return _derived(cls, _graphed, forward=torch.compiler.disable(forward), **{n: forgetful(n) for n in changes})


def _derived(cls: Any, kind: Callable[[Any], Any], **methods: Callable[..., Any]) -> Any:
    def reduce(self: nn.Module, _: Any) -> tuple[Any, ...]:
        """Pickles by the original class, because the derived one cannot be found by its name."""
        return _blank, (cls, kind.__name__), self.__dict__

    return type(cls.__name__, (cls,), {**methods, "__reduce_ex__": reduce, "optimized_from": cls})


def _blank(cls: Any, kind: str) -> nn.Module:
    return nn.Module.__new__({"_optimized": _optimized, "_graphed": _graphed}[kind](cls))


def _add_in_place(network: nn.Module) -> None:
    """Lets feed-forward layers write over the result of a convolution that they alone read."""
    for module in network.modules():
        for before, layer in pairwise(module) if isinstance(module, nn.Sequential) else ():
            if isinstance(before, PackedConv) and before.act == "none" and isinstance(layer, InferenceFFN):
                layer.write_over(before)
