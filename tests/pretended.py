"""A GPU that is not there: tensors that are on ``cuda`` for the code, with their numbers in the CPU's memory."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import mobilemamba
from mobilemamba.models.inference import graphs
from mobilemamba.ops import jit
from tests.models.fake_cuda import FakeCuda

CARD = torch.device("cuda", 0)
needs_no_driver = pytest.mark.skipif(
    not hasattr(torch._C, "_ensureCUDADeviceGuardSet"), reason="this PyTorch asks the driver of a GPU that is not there"
)
_PACKAGE = Path(mobilemamba.__file__).parent
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
#: Operators whose result, or its size, the host has to learn from the card.
_ASKING = {
    *(_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.masked_select.default),
    *(_ATEN._unique2.default, _ATEN.repeat_interleave.Tensor, _ATEN.equal.default, torch.ops.torchvision.nms.default),
}


#: Operators that a card refuses under deterministic algorithms, as they sum in no fixed order.
_UNORDERED = {
    *(_ATEN._adaptive_avg_pool2d_backward.default, _ATEN.upsample_bilinear2d_backward.default),
    *(_ATEN.upsample_bicubic2d_backward.default, _ATEN.max_pool2d_with_indices_backward.default),
    *(_ATEN.grid_sampler_2d_backward.default, torch.ops.torchvision._roi_align_backward.default),
}


class OnCard(Tensor):
    """A tensor of the card. PyTorch's own code takes it for one of the meta device, for which it asks no driver."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = CARD  # type: ignore[assignment]
    is_cuda, is_meta, is_cpu = True, False, False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        options = {"dtype": held.dtype, "layout": held.layout, "device": "meta", "requires_grad": held.requires_grad}
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), **options
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = OnCard(self.held.detach().clone())
        memo[id(self)] = copied = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
        return copied.requires_grad_(self.requires_grad)

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: OnCard) -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.held = new.held

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": CARD} | options)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the card's context")


class PretendedCard(TorchDispatchMode):
    """Lets code run as if there were a card. Tensors of both devices fail together, as they do there.

    Attributes:
        waits: Where the host had to wait for the card: file and line of the package, and operator -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that PyTorch does not look for a driver
        self._lifted: list[bool] = []
        self.waits: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Self:
        torch._C._ensureCUDADeviceGuardSet()
        self._lifted.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor then copies its numbers to the card in a second step
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[arg-type]
        torch._C._set_only_lift_cpu_tensors(self._lifted.pop())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):  # in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, OnCard) for x in tensors)
        result_there = there if kwargs.get("device") is None else kwargs["device"].type != "cpu"
        if func is _ATEN.copy_.default:
            result_there = isinstance(args[0], OnCard)
        if func in _COPIES:
            crosses = result_there != isinstance(tensors[-1], OnCard)
            if crosses and not kwargs.get("non_blocking") and args[2:3] != (True,):
                self._wait(func)
        elif there:
            strangers = [x for x in tensors if not isinstance(x, OnCard) and x.ndim]
            if strangers and not (func is _ATEN.index.Tensor and isinstance(args[0], OnCard)):
                raise RuntimeError(f"{func}: expected all tensors on the same device, but found cuda:0 and cpu")
            if torch.get_deterministic_debug_mode() == 2 and (func in _UNORDERED or _sums_pixels(func, args)):
                raise RuntimeError(f"{func} does not have a deterministic implementation")
            if strangers or func in _ASKING or (func in _INDEXING and _by_mask(args)):
                self._wait(func)
        held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, OnCard) else x, (args, kwargs))
        held_kwargs.pop("pin_memory", None)
        if "device" in held_kwargs:
            held_kwargs["device"] = torch.device("cpu")
        out = self._outside_of_inference(func, *held_args, **held_kwargs)
        if not result_there:
            return args[0] if func is _ATEN.copy_.default else out
        wrapped = self._outside_of_inference(tree_map, lambda x: OnCard(x) if type(x) is Tensor else x, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _outside_of_inference(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function; not in inference mode, in which PyTorch lets tensors of a subclass have no views."""
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(mode=False), torch.no_grad():
            return function(*args, **kwargs)

    def _wait(self, func: Any) -> None:
        frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_stack(None)]
        ours = [(file, line) for file, line in frames if file.is_relative_to(_PACKAGE)]
        place = f"{ours[0][0].relative_to(_PACKAGE)}:{ours[0][1]}" if ours else "elsewhere"
        self.waits[place, func.__name__] += 1


def _sums_pixels(func: Any, args: Any) -> bool:
    return func is _ATEN.nll_loss2d_forward.default and args[3] != 0


def _by_mask(args: Any) -> bool:
    """Whether the elements are chosen by a mask, which then are counted; a single value only fills it."""
    masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and (len(args) < 3 or args[2].numel() > 1 or len(args[1]) > 1)


def play_card(monkeypatch: pytest.MonkeyPatch, card: PretendedCard) -> None:
    """Answers for a card what the package asks a driver, CUDA graphs and Triton included, but compiles no kernel."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "a card",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 1000,
        "max_memory_allocated": 2000,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    of_cpu = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *_: of_cpu())
    monkeypatch.setattr(jit, "_why_no_driver", lambda: None)
    monkeypatch.setattr(graphs, "cuda", FakeCuda(card.waits))
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)  # this context is no mode there


class CardAccelerator(CPUAccelerator):
    """Lightning's accelerator for the card."""

    def setup_device(self, device: torch.device) -> None:
        assert device == CARD


class CardEvent:
    """What the package uses of ``torch.cuda.Event``."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...
