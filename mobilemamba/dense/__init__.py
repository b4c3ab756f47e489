"""Networks for dense prediction: backbones of timm's with necks and heads."""

from mobilemamba.dense.backbone import create_backbone, load_backbone
from mobilemamba.dense.segmentation_predictor import SegmentationPredictor
from mobilemamba.dense.segmenter import SEGMENTATION_HEADS, Segmenter, build_segmenter, create_segmenter
from mobilemamba.models.checkpoints import BUILDERS
from mobilemamba.models.predictor import PREDICTORS

__all__ = ["SEGMENTATION_HEADS", "Segmenter", "create_backbone", "create_segmenter", "load_backbone"]

BUILDERS["segmentation"] = build_segmenter
PREDICTORS["segmentation"] = SegmentationPredictor
