"""The sample for detection: scenes composed of the pictures inside the package, with boxes and masks."""

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
    """Scenes with their articles.

    Args:
        number: Of scenes in an epoch.
        size: Height and width in pixels.
        seed: Of the training scenes, 0 or more; None for those of the validation.
        masks: Whether to give the articles' masks.
    """

    def __init__(self, number: int, size: tuple[int, int], seed: int | None, *, masks: bool = False) -> None:
        super().__init__(number, size, seed)
        self.with_masks = masks

    def __getitem__(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The picture (3, H, W), normalised, and what :class:`~mobilemamba.data.batches.Boxes` lists."""
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
    """Scenes of two to five articles of clothing, some in part hidden, for trying out detection without a download.

    They are composed as those of :class:`~mobilemamba.data.fashion_scenes.FashionScenes`; 500 are for validation,
    always the same. The classes are the 10 articles; boxes and masks are of their visible pixels. A score on them
    compares only with other scores on them at the same size.

    Args:
        img_size: Side in pixels, or (height, width); any. None is 128.
        scenes: Training scenes in an epoch.
        **options: Of :class:`~mobilemamba.data.detection.DetectionDataModule`.
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
        """With the numbers of training scenes in an epoch and of validation scenes."""
        return f"Fashion objects ({self.scenes:,}/{_VAL_SCENES})"

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures (0.1 s, 8 MB); once."""
        self.check_arguments()
        if self.train_set is None:
            self.train_set = ObjectScenes(self.scenes, self.image_hw, self.seed, masks=self.masks)
            self.val_set = ObjectScenes(_VAL_SCENES, self.image_hw, None, masks=self.masks)
