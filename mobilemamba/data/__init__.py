"""Data modules: embedded samples, ImageNet-1k, ADE20K, COCO, and the user's own pictures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.sampling import IGNORED

if TYPE_CHECKING:
    from mobilemamba.data.modules import (
        ADE20K,
        COCO,
        COCOFolder,
        DataModule,
        DetectionDataModule,
        FashionMNISTSample,
        FashionObjects,
        FashionScenes,
        ImageDataModule,
        ImageFolder,
        ImageNet,
        SegmentationDataModule,
        SegmentationFolder,
        YOLOFolder,
    )

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


def __getattr__(name: str) -> Any:
    # Imported at first use, as they load Lightning, which reading a few pictures does not need. Then all at once, as
    # the command line finds a class by its name among those that are loaded.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = import_module("mobilemamba.data.modules")
    globals().update({known: getattr(modules, known) for known in __all__ if known not in globals()})
    return globals()[name]
