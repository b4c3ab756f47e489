"""All that :mod:`mobilemamba.data` exports, lazily, as importing this module loads Lightning."""

from mobilemamba.data.ade20k import ADE20K
from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.classification import ImageDataModule
from mobilemamba.data.coco import COCO, COCOFolder
from mobilemamba.data.detection import DetectionDataModule
from mobilemamba.data.fashion_mnist import FashionMNISTSample
from mobilemamba.data.fashion_objects import FashionObjects
from mobilemamba.data.fashion_scenes import FashionScenes
from mobilemamba.data.image_folder import ImageFolder
from mobilemamba.data.imagenet import ImageNet
from mobilemamba.data.sampling import IGNORED
from mobilemamba.data.segmentation import SegmentationDataModule
from mobilemamba.data.segmentation_folder import SegmentationFolder
from mobilemamba.data.yolo_folder import YOLOFolder

__all__ = [
    "ADE20K",
    "COCO",
    "IGNORED",
    "IGNORED_PIXEL",
    "COCOFolder",
    "DataModule",
    "DetectionDataModule",
    "FashionMNISTSample",
    "FashionObjects",
    "FashionScenes",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "SegmentationDataModule",
    "SegmentationFolder",
    "YOLOFolder",
]
