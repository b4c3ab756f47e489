"""Builds networks for detection by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mobilemamba.dense.backbone import create_backbone
from mobilemamba.dense.detector import Detector
from mobilemamba.dense.mask_rcnn import MaskRCNN
from mobilemamba.dense.pyramid import Pyramid
from mobilemamba.dense.retinanet import RetinaNet
from mobilemamba.dense.ssdlite import SSDLite
from mobilemamba.errors import ConfigError, check_choice
from mobilemamba.models.config import ArchOverrides
from mobilemamba.models.replace import copy_with

DETECTION_HEADS = ("mask_rcnn", "retinanet", "ssdlite")
#: Options of a detector that a card stores, as arguments of :func:`create_detector`.
DETECTION_OPTIONS: dict[str, type] = {"head_dim": int, "prune": bool}
_LEVELS = 5  # of a pyramid
#: Stride of a pyramid's finest level.
_FINEST = {"retinanet": 8, "mask_rcnn": 4}


def create_detector(
    head: str,
    backbone: str,
    num_classes: int = 80,
    *,
    head_dim: int = 256,
    frozen_norms: bool = True,
    prune: bool = False,
    arch: ArchOverrides | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
) -> Detector:
    """Builds a network for detection, freshly initialised.

    Args:
        head: One of ``DETECTION_HEADS``.
        backbone: Any timm model that gives maps of stride 16, 32 and, except for ``ssdlite``, others twice as coarse
            or half as fine.
        num_classes: Classes without the background; labels are 0 to ``num_classes - 1``.
        head_dim: Width of neck and head; by default the paper's.
        frozen_norms: Whether the backbone's BatchNorms keep their running statistics in training, as in the paper.
        prune: Whether to leave out the stages that no head reads: for ``ssdlite`` those coarser than stride 32. They
            never run or train, but the paper's counts and the authors' checkpoints include them.
        arch: Architecture choices; for a mobilemamba backbone only.
        in_chans: Channels of a picture.
        drop_path_rate: Stochastic depth of the backbone; 0.03 in the paper.

    Raises:
        ConfigError: If an argument is unknown or does not fit the others.
    """
    check_choice("head", head, DETECTION_HEADS)
    for name, value, least in (("num_classes", num_classes, 1), ("head_dim", head_dim, 4)):
        if value < least:
            raise ConfigError(f"{name}={value}: expected {least} or more")
    extractor: Any = create_backbone(backbone, arch, in_chans, drop_path_rate)
    strides: list[int] = extractor.feature_info.reduction()
    channels: list[int] = extractor.feature_info.channels()
    if head == "ssdlite":
        taken = _places(strides, (16, 32), head, backbone)
        _leave_unread(extractor, taken, prune=prune)
        return SSDLite(extractor, taken, [channels[i] for i in taken], num_classes, head_dim, frozen_norms=frozen_norms)
    with_masks, finest = head == "mask_rcnn", _FINEST[head]
    first = next((i for i, stride in enumerate(strides) if stride >= finest), 0)
    expected = [strides[first] * 2**i for i in range(len(strides) - first)][:_LEVELS]
    taken = _places(strides, expected, head, backbone)
    doublings = (strides[first] // finest).bit_length() - 1
    halvings = max(0, _LEVELS - doublings - len(taken))
    neck = Pyramid([channels[i] for i in taken], doublings, halvings, learned=not with_masks, dim=head_dim)
    levels = [finest * 2**i for i in range(_LEVELS)]
    kind = MaskRCNN if with_masks else RetinaNet
    return kind(extractor, neck, levels, num_classes, head_dim, frozen_norms=frozen_norms)


def _places(strides: Sequence[int], wanted: Sequence[int], head: str, backbone: str) -> list[int]:
    """Returns the indices of the maps with the wanted strides.

    Raises:
        ConfigError: If one is missing.
    """
    if set(wanted) - set(strides) or not wanted:
        raise ConfigError(
            f"{head} reads maps of stride {', '.join(map(str, wanted))}, and {backbone} gives "
            f"{', '.join(map(str, strides))}; choose another backbone"
        )
    return [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]


def _leave_unread(extractor: Any, taken: list[int], *, prune: bool) -> None:
    """Removes the stages that no head reads, or freezes them, because training would wait for their gradients."""
    pruned = extractor if prune else copy_with(extractor, lambda x: x)  # only to learn the names
    pruned.out_indices = pruned.feature_info.out_indices = pruned.model.prune_intermediate_layers(taken)
    read = dict(pruned.named_parameters())
    for name, parameter in extractor.named_parameters():
        if name not in read:
            parameter.requires_grad_(requires_grad=False)
