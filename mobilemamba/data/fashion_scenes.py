"""The sample for dense tasks: scenes composed of the pictures inside the package."""

from math import inf
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import normalize

from mobilemamba.data.fashion_mnist import FashionMNISTSample, read_sample, split_mask
from mobilemamba.data.scenes import Scene, compose
from mobilemamba.data.segmentation import SegmentationDataModule
from mobilemamba.drawing import distinct_colours

_VAL_SCENES = 200
_VALIDATION = 1  # sets the validation's scenes apart from those of a training with seed 0


class Scenes:
    """Scenes of the sample's training or validation pictures, and of no others.

    Known by the keys of :mod:`mobilemamba.data.sampling`: every epoch of the training has new scenes, the validation
    always the same, whatever the seed.

    Args:
        number: Of scenes in an epoch.
        size: Height and width in pixels.
        seed: Of the training scenes, 0 or more; None for those of the validation.
    """

    def __init__(self, number: int, size: tuple[int, int], seed: int | None) -> None:
        pictures_NHW, labels_N = read_sample()
        part_N = split_mask(labels_N) ^ (seed is not None)
        self.pictures_NHW, self.labels_N = pictures_NHW[part_N], labels_N[part_N]
        self.number, self.size, self.seed = number, size, seed

    def __len__(self) -> int:
        return self.number

    def scene(self, key: int) -> Scene:
        """All that is known of the scene of a key."""
        epoch, index = divmod(key, self.number)
        numbers = (0, epoch, index, _VALIDATION) if self.seed is None else (self.seed, epoch, index)
        return compose(self.pictures_NHW, self.labels_N, self.size, *numbers)


class SceneSet(Scenes, Dataset[tuple[Tensor, Tensor]]):
    """Scenes with the classes of their pixels."""

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        """The picture (3, H, W), normalised, and the classes of its pixels (H, W)."""
        scene = self.scene(key)
        return normalize(scene.image, list(FashionScenes.mean), list(FashionScenes.std)), scene.classes


class FashionScenes(SegmentationDataModule):
    """Scenes of two to five articles of clothing, some in part hidden, for trying out segmentation without a download.

    Composed of the pictures of :class:`~mobilemamba.data.fashion_mnist.FashionMNISTSample` when they are asked for: the
    training's of its training pictures, new ones in every epoch; 200 for validation of its validation pictures, always
    the same. The classes are the background and the 10 articles. A score on them compares only with other scores on
    them at the same size.

    Args:
        img_size: Side in pixels, or (height, width); any. None is 128.
        scenes: Training scenes in an epoch.
        **options: Of :class:`~mobilemamba.data.base.DataModule`.
    """

    class_names = ("background", *FashionMNISTSample.class_names)
    palette = ((0, 0, 0), *distinct_colours(len(FashionMNISTSample.class_names)))
    mean = (0.447, 0.447, 0.447)  # of training scenes
    std = (0.21, 0.21, 0.21)
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **SegmentationDataModule.LIMITS,
        "scenes": (2, inf, "2 or more, e.g. 2000"),
    }

    def __init__(self, img_size: int | tuple[int, int] | None = None, scenes: int = 2000, **options: Any) -> None:
        super().__init__(128 if img_size is None else img_size, **options)
        self.scenes = scenes

    @property
    def name(self) -> str:  # type: ignore[override]  # depends on an argument
        """With the numbers of training scenes in an epoch and of validation scenes."""
        return f"Fashion scenes ({self.scenes:,}/{_VAL_SCENES})"

    def setup(self, stage: str | None = None) -> None:
        """Read the pictures (0.1 s, 8 MB); once."""
        self.check_arguments()
        if self.train_set is None:
            self.train_set = SceneSet(self.scenes, self.image_hw, self.seed)
            self.val_set = SceneSet(_VAL_SCENES, self.image_hw, None)
