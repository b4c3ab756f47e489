"""The sample for detection: scenes composed of the embedded pictures, with boxes and masks."""

from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import normalize

from mobilemamba.data.detection import DetectionDataModule
from mobilemamba.data.fashion_mnist import FashionMNISTSample
from mobilemamba.data.fashion_scenes import FashionScenes, Scenes
from mobilemamba.data.objects import make_target

_VAL_SCENES = 500


class ObjectScenes(Scenes, Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Scenes with the boxes and masks of their articles.

    Args:
        number: Number of scenes per epoch.
        size: Height and width in pixels.
        seed: Seed of training scenes, 0 or more; None for validation scenes.
        masks: Whether to provide the articles' masks.
    """

    def __init__(self, number: int, size: tuple[int, int], seed: int | None, *, masks: bool = False) -> None:
        super().__init__(number, size, seed)
        self.with_masks = masks

    def __getitem__(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the normalised picture (3, H, W) and its target, see :class:`~mobilemamba.data.batches.Boxes`."""
        scene = self.scene(key)
        target = make_target(
            boxes=scene.boxes,
            labels=scene.labels,
            iscrowd=torch.zeros(len(scene.labels), dtype=torch.bool),
            area=scene.areas,
            masks=scene.masks if self.with_masks else None,
            size=self.size,
            original_size=self.size,
            image_id=key % self.number,
        )
        return normalize(scene.image, list(FashionObjects.mean), list(FashionObjects.std)), target


class FashionObjects(DetectionDataModule):
    """Scenes of two to five partly hidden articles of clothing, to try out detection without a download.

    They are composed like those of :class:`~mobilemamba.data.fashion_scenes.FashionScenes`; the 500 validation scenes
    are always the same. The classes are the 10 kinds of articles; boxes and masks enclose their visible pixels. Scores
    compare only with scores on the same scenes at the same size.

    Args:
        img_size: Side in pixels, or (height, width); None for 128.
        scenes: Number of training scenes per epoch.
        **options: Arguments of :class:`~mobilemamba.data.detection.DetectionDataModule`.
    """

    class_names = FashionMNISTSample.class_names
    mean = FashionScenes.mean
    std = FashionScenes.std
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **DetectionDataModule.LIMITS,
        "scenes": (1, inf, "1 or more, e.g. 2000"),
    }

    def __init__(self, img_size: int | tuple[int, int] | None = None, scenes: int = 2000, **options: Any) -> None:
        super().__init__(128 if img_size is None else img_size, **options)
        self.scenes = scenes

    @property
    def name(self) -> str:  # type: ignore[override]  # depends on an argument
        """Name with the numbers of training scenes per epoch and of validation scenes."""
        return f"Fashion objects ({self.scenes:,}/{_VAL_SCENES})"

    def setup(self, stage: str | None = None) -> None:
        """Reads the pictures once (0.1 s, 8 MB)."""
        self.check_arguments()
        if self.train_set is None:
            self.train_set = ObjectScenes(self.scenes, self.image_hw, self.seed, masks=self.masks)
            self.val_set = ObjectScenes(_VAL_SCENES, self.image_hw, None, masks=self.masks)
