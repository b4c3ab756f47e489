"""Infers the cards of the authors' segmenters and detectors from their tensors, as their files have none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mobilemamba.models.card import ModelCard, Preprocessing
from mobilemamba.models.release_names import StateDict


@dataclass(frozen=True)
class _Kind:
    mark: str  # prefix of tensor names that only this network has
    task: str
    head: str
    logits: str  # name of a tensor with one element for each logit
    per_class: int = 1  # logits per class
    others: int = 0  # classes to subtract for the background
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
    """Returns the card of the authors' file, with the preprocessing of their evaluations; None for any other file.

    A detector's classes, if there are as many as COCO has, are COCO's, and likewise a segmenter's ADE20K's. The tensors
    do not show whether SSDLite's pictures had 320 px or 512 px; 320 px is assumed.

    Args:
        state: The file's tensors.
        backbone: timm's name of the backbone.
    """
    from mobilemamba.data.ade20k_classes import CLASSES  # `import mobilemamba` does without the data
    from mobilemamba.data.coco_categories import CATEGORIES

    for kind in _KINDS:
        if kind.logits in state and any(name.startswith(kind.mark) for name in state):
            colours = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
            how = Preprocessing(kind.img_size, *colours, "bilinear", 1.0, antialias=False, resize=kind.resize)
            classes = state[kind.logits].numel() // kind.per_class - kind.others
            auxiliary = any(name.startswith("auxiliary_head.") for name in state)
            options = {"auxiliary": True} if auxiliary else {}
            card = ModelCard(backbone, how, classes, task=kind.task, head=kind.head, head_options=options)
            if kind.task == "detection" and classes == len(CATEGORIES):
                return replace(card, class_names=tuple(CATEGORIES.values()), category_ids=tuple(CATEGORIES))
            if kind.task == "segmentation" and classes == len(CLASSES):
                return replace(card, class_names=CLASSES)
            return card
    return None
