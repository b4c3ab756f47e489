"""The sample for dense tasks: scenes composed of the embedded pictures."""

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
_VALIDATION = 1  # distinguishes validation scenes from training scenes with seed 0


class Scenes:
    """Scenes composed of only the sample's training pictures, or of only its validation pictures.

    Indexed by the keys of :mod:`mobilemamba.data.sampling`: every training epoch has new scenes, while validation
    scenes are always the same, whatever the seed.

    Args:
        number: Number of scenes per epoch.
        size: Height and width in pixels.
        seed: Seed of training scenes, 0 or more; None for validation scenes.
    """

    def __init__(self, number: int, size: tuple[int, int], seed: int | None) -> None:
        pictures_NHW, labels_N = read_sample()
        part_N = split_mask(labels_N) ^ (seed is not None)
        self.pictures_NHW, self.labels_N = pictures_NHW[part_N], labels_N[part_N]
        self.number, self.size, self.seed = number, size, seed

    def __len__(self) -> int:
        return self.number

    def scene(self, key: int) -> Scene:
        """Composes the scene of a key."""
        epoch, index = divmod(key, self.number)
        numbers = (0, epoch, index, _VALIDATION) if self.seed is None else (self.seed, epoch, index)
        return compose(self.pictures_NHW, self.labels_N, self.size, *numbers)


class SceneSet(Scenes, Dataset[tuple[Tensor, Tensor]]):
    """Scenes with the classes of their pixels."""

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        """Returns the normalised picture (3, H, W) and the classes of its pixels (H, W)."""
        scene = self.scene(key)
        return normalize(scene.image, list(FashionScenes.mean), list(FashionScenes.std)), scene.classes


class FashionScenes(SegmentationDataModule):
    """Scenes of two to five partly hidden articles of clothing, to try out segmentation without a download.

    They are composed on access from :class:`~mobilemamba.data.fashion_mnist.FashionMNISTSample`: training scenes of its
    training pictures, new in every epoch, and 200 validation scenes of its validation pictures, always the same. The
    classes are the background and the 10 kinds of articles. Scores compare only with scores on the same scenes at the
    same size.

    Args:
        img_size: Side in pixels, or (height, width); None for 128.
        scenes: Number of training scenes per epoch.
        **options: Arguments of :class:`~mobilemamba.data.base.DataModule`.
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
        """Name with the numbers of training scenes per epoch and of validation scenes."""
        return f"Fashion scenes ({self.scenes:,}/{_VAL_SCENES})"

    def setup(self, stage: str | None = None) -> None:
        """Reads the pictures once (0.1 s, 8 MB)."""
        self.check_arguments()
        if self.train_set is None:
            self.train_set = SceneSet(self.scenes, self.image_hw, self.seed)
            self.val_set = SceneSet(_VAL_SCENES, self.image_hw, None)
