"""The base class of data modules for object detection."""

from typing import Any, ClassVar

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import DIVISOR, Boxes
from mobilemamba.data.detection_transforms import Resize
from mobilemamba.drawing import Colour, distinct_colours

_LONGER = 1333 / 800  # ratio of the longer to the shorter side's limit, if only the latter is given


class DetectionDataModule(DataModule):
    """Base class of data modules for detection: pictures (B, 3, H, W) float32 and a dict of tensors for each.

    :class:`~mobilemamba.data.batches.Boxes` describes the dict. Training pictures have no crowds; validation pictures
    have everything that is annotated.

    Args:
        masks: Whether to provide the objects' masks.
        **options: Arguments of :class:`~mobilemamba.data.base.DataModule`.

    Attributes:
        resize: How pictures are scaled to ``img_size``: ``stretch`` to exactly this size, or ``fit`` within it, keeping
            their aspect ratio.
        interpolation: Interpolation of the scaling: ``bilinear``.
        antialias: Whether to antialias pictures that are scaled down.
        category_ids: Ids of the classes in COCO's result files, in the order of the labels.
    """

    resize: Resize = "stretch"
    interpolation: str = "bilinear"
    antialias: bool = True
    single_pictures: ClassVar[bool] = True
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = DataModule.LIMITS

    def __init__(
        self, img_size: int | tuple[int, int] | None = None, batch_size: int = 16, masks: bool = False, **options: Any
    ) -> None:
        super().__init__(img_size, batch_size, **options)
        self.masks = masks

    @property
    def form(self) -> Boxes:  # type: ignore[override]  # depends on arguments
        return Boxes(self.size_divisor, masks=self.masks)

    @property
    def size_divisor(self) -> int:
        """Divisor of the height and width of a batch."""
        return DIVISOR if self.resize == "fit" else 1

    @property
    def evaluation_batch_size(self) -> int:
        """Pictures per batch and process in validation and test.

        It is 1 if pictures keep their aspect ratio: what is found would depend on the padding beside larger ones.
        """
        return 1 if self.resize == "fit" else super().evaluation_batch_size

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width; if pictures keep their aspect ratio, the limits of the shorter and of the longer side."""
        if self.resize == "stretch":
            return super().image_hw
        size = self.img_size
        shorter, longer = (size, round(size * _LONGER)) if isinstance(size, int) else sorted(size)
        return shorter, longer

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(range(1, self.num_classes + 1))

    @property
    def palette(self) -> tuple[Colour, ...]:
        """A colour for each class, red, green and blue in 0..255."""
        return distinct_colours(self.num_classes)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Preprocessing of validation pictures: img_size (h, w), mean, std, interpolation, antialias, resize, upright.

        See :func:`~mobilemamba.data.detection_transforms.eval_transform`.
        """
        how = {"interpolation": self.interpolation, "antialias": self.antialias, "resize": self.resize}
        return {**super().preprocessing, **how}
