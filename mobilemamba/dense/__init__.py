"""Networks for dense prediction: timm backbones with necks and heads."""

from functools import partial

from mobilemamba.dense.backbone import create_backbone, load_backbone
from mobilemamba.dense.candidates import RuntimeDetector
from mobilemamba.dense.detection import DETECTION_HEADS, DETECTION_OPTIONS, create_detector
from mobilemamba.dense.detector import Detector
from mobilemamba.dense.from_card import from_card
from mobilemamba.dense.release_cards import card_of_release
from mobilemamba.dense.segmenter import (
    SEGMENTATION_HEADS,
    SEGMENTATION_OPTIONS,
    RuntimeSegmenter,
    Segmenter,
    create_segmenter,
)
from mobilemamba.dense.views import SlidingWindow, Views, look_closely
from mobilemamba.models.checkpoints import BUILDERS, IN_RUNTIME, PREDICTORS, RECOGNISERS

__all__ = [
    "DETECTION_HEADS",
    "HEADS",
    "SEGMENTATION_HEADS",
    "Detector",
    "Segmenter",
    "SlidingWindow",
    "Views",
    "create_backbone",
    "create_detector",
    "create_segmenter",
    "load_backbone",
    "look_closely",
]

#: Head to the task that it is for, both as cards name them.
HEADS = dict.fromkeys(SEGMENTATION_HEADS, "segmentation") | dict.fromkeys(DETECTION_HEADS, "detection")

BUILDERS |= {
    "detection": partial(from_card, create_detector, DETECTION_OPTIONS),
    "segmentation": partial(from_card, create_segmenter, SEGMENTATION_OPTIONS),
}
IN_RUNTIME |= {"detection": RuntimeDetector, "segmentation": RuntimeSegmenter}
RECOGNISERS.append(card_of_release)
PREDICTORS |= {
    "detection": "mobilemamba.dense.detection_predictor.DetectionPredictor",
    "segmentation": "mobilemamba.dense.segmentation_predictor.SegmentationPredictor",
}
