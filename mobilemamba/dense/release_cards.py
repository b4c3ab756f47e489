"""Cards for the authors' segmenters and detectors, whose files do not say what they are: told by their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mobilemamba.models.card import ModelCard, Preprocessing
from mobilemamba.models.release_names import StateDict


@dataclass(frozen=True)
class _Kind:
    mark: str  # what the name of a tensor begins with, and of no other network's
    task: str
    head: str
    logits: str  # a tensor with an entry for each logit
    per_class: int = 1  # logits
    others: int = 0  # that are no class's, of the background
    img_size: tuple[int, int] = (512, 512)
    resize: Literal["fit", "stretch"] | None = None


_KINDS = (
    _Kind("decode_head.image_pool.", "segmentation", "deeplabv3", "decode_head.conv_seg.bias"),
    _Kind("decode_head.psp_modules.", "segmentation", "pspnet", "decode_head.conv_seg.bias"),
    _Kind("decode_head.scale_heads.", "segmentation", "semantic_fpn", "decode_head.conv_seg.bias"),
    _Kind("bbox_head.retina_cls.", "detection", "retinanet", "bbox_head.retina_cls.bias", 9, 0, (800, 1333), "fit"),
    _Kind("neck.extra_layers.", "detection", "ssdlite", "bbox_head.cls_convs.0.1.bias", 6, 1, (320, 320), "stretch"),
    _Kind("roi_head.", "detection", "mask_rcnn", "roi_head.bbox_head.fc_cls.bias", 1, 1, (800, 1333), "fit"),
)


def card_of_release(state: StateDict, backbone: str) -> ModelCard | None:
    """What the authors' file is of, with the preprocessing of their evaluations; None if it is none of these.

    That the size of SSDLite's pictures was 320 px or 512 px does not show; it is taken to be the former.

    Args:
        state: The file's tensors.
        backbone: timm's name of the network below.
    """
    for kind in _KINDS:
        if kind.logits in state and any(name.startswith(kind.mark) for name in state):
            colours = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
            how = Preprocessing(kind.img_size, *colours, "bilinear", 1.0, antialias=False, resize=kind.resize)
            classes = state[kind.logits].numel() // kind.per_class - kind.others
            auxiliary = any(name.startswith("auxiliary_head.") for name in state)
            options = {"auxiliary": True} if auxiliary else {}
            return ModelCard(backbone, how, classes, task=kind.task, head=kind.head, head_options=options)
    return None
