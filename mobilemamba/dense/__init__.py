"""Networks for dense prediction: backbones of timm's with necks and heads."""

from mobilemamba.dense.backbone import create_backbone, load_backbone
from mobilemamba.dense.inference import SlidingWindow, Views, look_closely
from mobilemamba.dense.segmenter import SEGMENTATION_HEADS, Segmenter, create_segmenter

__all__ = [
    "SEGMENTATION_HEADS",
    "Segmenter",
    "SlidingWindow",
    "Views",
    "create_backbone",
    "create_segmenter",
    "load_backbone",
    "look_closely",
]
