"""What data sets whose targets are boxes around objects have in common."""

from typing import Any, ClassVar

from mobilemamba.data.base import DataModule
from mobilemamba.data.batches import Boxes
from mobilemamba.data.detection_transforms import Resize
from mobilemamba.drawing import Colour, distinct_colours

_LONGER = 1333 / 800  # the longer side's limit, times the shorter one's, if a number alone is given
_DIVISOR = 32


class DetectionDataModule(DataModule):
    """Base of data modules for detection: pictures (B, 3, H, W) float32 and a dict of tensors for each.

    These are listed in :class:`~mobilemamba.data.batches.Boxes`. Training pictures have no crowds; those for validation
    have all that is annotated.

    Args:
        masks: Whether to give the objects' masks.
        **options: Of :class:`~mobilemamba.data.base.DataModule`.

    Attributes:
        resize: How pictures come to ``img_size``: ``stretch`` to exactly this size; or ``fit``, keeping their shape,
            such that they are no larger.
        interpolation: How pictures are scaled: ``bilinear``.
        antialias: Whether pixels are averaged where a picture is scaled down.
        category_ids: What the classes are called by in COCO's result files, in the order of the labels.
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
        """The height and width of a batch are multiples of it."""
        return _DIVISOR if self.resize == "fit" else 1

    @property
    def image_hw(self) -> tuple[int, int]:
        """Where pictures keep their shape, the limits of the shorter and of the longer side, in this order."""
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
        """How validation pictures are prepared: img_size (h, w), mean, std, interpolation, antialias, resize, upright.

        See :func:`~mobilemamba.data.detection_transforms.eval_transform`.
        """
        how = {"interpolation": self.interpolation, "antialias": self.antialias, "resize": self.resize}
        return {**super().preprocessing, **how}
