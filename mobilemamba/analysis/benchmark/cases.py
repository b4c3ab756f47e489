"""Cases of a benchmark: all combinations of networks and conditions, checked before the first is built."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

from mobilemamba.analysis.benchmark.published import FRONT
from mobilemamba.analysis.machine import choose_device
from mobilemamba.dense import HEADS
from mobilemamba.errors import ConfigError, check_choice
from mobilemamba.models.card import ModelCard, Preprocessing, read_card
from mobilemamba.models.checkpoints import check_task
from mobilemamba.models.config import VARIANTS
from mobilemamba.models.runtime import RUNNERS, runtime_of
from mobilemamba.ops.selective_scan import BACKENDS
from mobilemamba.text import printable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Modes in PyTorch; all others are runtimes.
MODES = ("eager", "compiled", "exported", "graph")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One network under one set of conditions."""

    model: str  # see :func:`card_of`
    size: int  # side of square pictures in pixels, or the width of rectangular ones
    batch: int = 1  # batch size
    device: str = "cpu"  # torch's name of the device
    dtype: str = "float32"  # of weights and pictures; in training of the autocast region, with weights in float32
    #: ``"eager"``, ``"compiled"`` (torch.compile), ``"exported"`` (torch.export) or ``"graph"`` (a CUDA graph).
    mode: str = "eager"
    #: Layout of weights and pictures: ``"contiguous"``, ``"channels_last"`` or ``"auto"``, the faster of the two.
    layout: str = "auto"
    fused: bool = True  # whether norms are folded into weights; only in inference
    train: bool = False  # time a training step instead of inference
    scan_backend: str = "auto"  # backend of the selective scan, for a mobilemamba model
    height: int | None = None  # height of rectangular pictures in pixels

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.height or self.size, self.size

    @property
    def px(self) -> str:
        """Size of the pictures as text."""
        return f"{self.size}" if self.height is None else f"{self.height}x{self.size}"

    @property
    def card(self) -> ModelCard:
        return card_of(self.model)

    @property
    def is_ours(self) -> bool:
        return self.card.model in VARIANTS


def is_file(model: str) -> bool:
    """Whether a network is given by a weights file, or by a folder instead of one, rather than by timm's name."""
    path = Path(model)
    if path.suffix in (".safetensors", ".ckpt", ".pth") or runtime_of(path) is not None:
        return True
    return path.is_dir() and not timm.is_model(model)


def under_heads(head: str, backbones: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of networks for all combinations of heads, separated by commas, and backbones.

    Raises:
        ConfigError: If a backbone is a weights file, which has its own head; or if there is no such head.
    """
    if files := [name for name in backbones if is_file(name)]:
        raise ConfigError(f"--head {head}: {printable(files[0])} is of a whole network; give timm's name, or no --head")
    heads = [one.strip() for one in head.split(",")]
    for one in heads:
        check_choice("head", one, HEADS)
    return tuple(f"{one}+{name}" for one in heads for name in backbones)


#: Sides of the pictures for which detectors are counted and timed.
_SIDES = {"mask_rcnn": 800, "retinanet": 800, "ssdlite": 320}


@functools.cache
def card_of(model: str) -> ModelCard:
    """Returns the model card of a network.

    Args:
        model: A weights file; timm's name of a classifier, with ImageNet's 1,000 classes; a segmentation head and
            timm's name of the backbone, ``pspnet+mobilemamba_b4``, with ADE20K's 150 classes at 512 px; or a detection
            head and a backbone, ``retinanet+mobilemamba_b1``, with COCO's 80 classes at 800 px (``ssdlite``: 320 px).

    Raises:
        ConfigError: If there is no such model or head, or the file does not tell its network.
        WeightsError: If the file cannot be read, or its task is unknown.
    """
    if not is_file(model):
        head, _, name = model.rpartition("+")
        preprocessing = Preprocessing.of_model(name)
        if not head:
            return ModelCard(name, preprocessing)
        check_choice("head", head, HEADS)
        side = _SIDES.get(head, 512)
        preprocessing = replace(preprocessing, img_size=(side, side))
        return ModelCard(name, preprocessing, num_classes=80 if head in _SIDES else 150, task=HEADS[head], head=head)
    card = read_card(model)
    if card is None:
        raise ConfigError(
            f"{printable(model)} does not say which network it is of; write it anew by mobilemamba convert SOURCE "
            "TARGET.safetensors --model NAME"
        )
    check_task(card, printable(model))
    return card


def expand(
    models: Sequence[str],
    sizes: Sequence[int | tuple[int, int]] = (),
    batches: Sequence[int] = (1, 32),
    devices: Sequence[str] = ("cpu",),
    dtypes: Sequence[str] = ("float32",),
    modes: Sequence[str] = ("eager",),
    layouts: Sequence[str] = ("auto",),
    fused: bool = True,
    train: bool = False,
    scan_backend: str = "auto",
) -> list[Case]:
    """Returns all combinations as cases; models vary fastest, so that networks to compare are adjacent.

    Args:
        models: See :func:`card_of`.
        sizes: Sides of the pictures in pixels, or (height, width); empty for each model's own.
        batches: See :class:`Case` for this and all further arguments; a device may also be ``auto``.

    Raises:
        ConfigError: If a value is unknown or invalid, or cannot run on this machine.
        BackendUnavailableError: If the scan backend cannot run here.
        WeightsError: If a file cannot be read.
    """
    given = {"batch": batches, "device": devices, "dtype": dtypes, "mode": modes, "layout": layouts}
    if empty := [setting for setting, values in given.items() if not values]:
        raise ConfigError(f"{empty[0]}: there is none; give at least one, or leave it out")
    exported = {name: runtime.name for name in models if (runtime := runtime_of(name))}
    asked, modes = modes, tuple(dict.fromkeys((*modes, *exported.values())))
    ours = {name for name in models if card_of(name).model in VARIANTS}
    _check_values(sizes, batches, dtypes, modes, layouts, train=train)
    if train:
        _check_training(models, modes)
    chosen = [choose_device(name) for name in devices]
    _check_modes(modes, chosen, dtypes, fused=fused)
    for device, dtype in itertools.product(chosen, dtypes):
        BACKENDS.choose(scan_backend, device, DTYPES[dtype])
    if scan_backend != "auto" and models and not ours:
        raise ConfigError(f"scan_backend {scan_backend}: none of these networks has a scan; leave it out")
    if not models:
        raise ConfigError("no model to measure: expected at least one timm name or weights file")
    combinations = itertools.product(batches, map(str, chosen), dtypes, asked, layouts, sizes or (None,), models)
    cases = [
        Case(
            model,
            own_size(model) if size is None else size if isinstance(size, int) else size[1],
            *(batch, device, dtype, in_mode, "contiguous" if in_mode in RUNNERS else layout),
            fused=fused and not train,
            train=train,
            scan_backend=scan_backend if model in ours else "auto",
            height=size[0] if isinstance(size, tuple) and size[0] != size[1] else None,
        )
        for batch, device, dtype, mode, layout, size, model in combinations
        for in_mode in [exported.get(model, mode)]  # an exported file runs only in its own runtime
    ]
    return list(dict.fromkeys(cases))


def _check_values(
    sizes: Sequence[int | tuple[int, int]],
    batches: Sequence[int],
    dtypes: Sequence[str],
    modes: Sequence[str],
    layouts: Sequence[str],
    *,
    train: bool,
) -> None:
    """Refuses values that are unknown, or too small."""
    for setting, values, known in (
        ("dtype", dtypes, tuple(DTYPES)),
        ("mode", modes, (*MODES, *RUNNERS)),
        ("layout", layouts, ("auto", *LAYOUTS)),
    ):
        for value in values:
            check_choice(setting, value, known)
    sides = [side for size in sizes for side in ((size,) if isinstance(size, int) else size)]
    for setting, numbers, least in (("size", sides, 32), ("batch", batches, 2 if train else 1)):
        for number in numbers:
            if number < least:
                why = "; a norm in training needs two pictures" if setting == "batch" and train else ""
                raise ConfigError(f"{setting} {number}: expected {least} or more{why}")


def _check_training(models: Sequence[str], modes: Sequence[str]) -> None:
    """Refuses modes and networks that cannot be trained."""
    others = [(runtime, "another runtime") for runtime in RUNNERS]
    for mode, what in (("exported", "an exported network"), ("graph", "a CUDA graph"), *others):
        if mode in modes:
            raise ConfigError(f"mode {mode!r}: {what} is for inference; leave it out or leave train out")
    if of_boxes := next((name for name in models if card_of(name).task == "detection"), None):
        raise ConfigError(f"train with {printable(of_boxes)}: detectors are timed in inference; leave train out")


def _check_modes(modes: Sequence[str], devices: Sequence[torch.device], dtypes: Sequence[str], *, fused: bool) -> None:
    """Refuses modes that are not for all of the devices and dtypes."""
    if "graph" in modes and (other := next((device for device in devices if device.type != "cuda"), None)):
        raise ConfigError(f"mode 'graph' on device {other}: CUDA graphs need cuda; leave it out or choose cuda")
    for mode in (mode for mode in modes if mode in RUNNERS):
        if elsewhere := [device for device in devices if device.type != "cpu"]:
            raise ConfigError(f"mode {mode!r} on device {elsewhere[0]}: it is measured on the cpu; choose that")
        if other_dtypes := [dtype for dtype in dtypes if dtype != "float32"]:
            raise ConfigError(f"mode {mode!r} with dtype {other_dtypes[0]}: it is measured in float32; leave dtype out")
        if not fused:
            raise ConfigError(f"mode {mode!r} with fused=False: exports have folded norms; leave it out")


def own_size(model: str) -> int:
    """Returns the picture size of a network in pixels: of those in ``FRONT``, the size of the published accuracy."""
    return FRONT[model].size if model in FRONT else card_of(model).preprocessing.img_size[-1]
