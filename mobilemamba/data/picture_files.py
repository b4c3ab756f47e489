"""The base class of data modules whose pictures are files, for all kinds of targets."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.utilities import rank_zero_info
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from mobilemamba.data.base import ABOVE_0, BELOW_1, DataModule
from mobilemamba.errors import DataError
from mobilemamba.text import printable

#: Limits for data modules that set a fraction aside and change colours, as for detection and segmentation.
LIMITS_OF_CHANGES: dict[str, tuple[float, float, str]] = {
    "val_fraction": (ABOVE_0, BELOW_1, "a share above 0 and below 1"),
    "augmentation.brightness": (0, 1, "0 to 1"),
    "augmentation.contrast": (0, 1, "0 to 1"),
    "augmentation.saturation": (0, 1, "0 to 1"),
    "augmentation.hue": (0, 0.5, "turns, 0 to 0.5"),
}


class PictureFiles(DataModule):
    """Base class of data modules with a folder of pictures; listed before that of their kind of targets.

    Args:
        root: Folder of the data set.
        mean: Mean per channel, of pictures in 0..1; None for the model's own, or ImageNet's outside the command line.
        std: Standard deviation per channel, of pictures in 0..1; None as for ``mean``.
        on_error: What to do with pictures and annotations that cannot be used: ``stop`` the run; or ``skip`` them with
            a warning, and count them.
        upright: Whether to rotate pictures by their EXIF orientation; None for the setting of the weights, or else the
            default of the data set.
        **options: Arguments of the base class for the kind of targets.

    Attributes:
        notes: Messages about unused data that are printed at the start, one line each.
    """

    title: ClassVar[str | None] = None  # name of the data set; None for that of the folder
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **DataModule.LIMITS,
        "mean": (-1, 1, "that of pictures in 0 to 1, e.g. 0.5"),
        "std": (ABOVE_0, inf, "more than 0: pictures are divided by it"),
        "augmentation.hflip": (0, 1, "a probability, 0 to 1"),
    }

    def __init__(
        self,
        root: str,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        on_error: Literal["stop", "skip"] = "stop",
        upright: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.mean = IMAGENET_DEFAULT_MEAN if mean is None else mean
        self.std = IMAGENET_DEFAULT_STD if std is None else std
        self.on_error = on_error
        if upright is not None:
            self.upright = upright
        self.notes: list[str] = []

    def named(self, numbers: Sequence[int]) -> str:
        """Returns the data set's name with the numbers of training and validation pictures, and of test pictures."""
        shown = "/".join(f"{number:,}" for number in numbers[: 3 if numbers[2] else 2])
        return f"{self.title or Path(self.root).resolve().name} ({shown})"

    def print_notes(self, *more: str) -> None:
        """Prints :attr:`notes` and further ones."""
        for line in (*self.notes, *more):
            rank_zero_info(f"{printable(self.root)}: {line}")

    @property
    def transform_options(self) -> dict[str, Any]:
        """Arguments of the transforms: ``preprocessing`` without ``upright``, which is applied when reading."""
        return {name: value for name, value in self.preprocessing.items() if name != "upright"}

    @property
    def set_options(self) -> dict[str, Any]:
        """Arguments of all data sets."""
        return {"upright": self.upright, "skip": self.on_error == "skip"}

    @property
    def is_set_up(self) -> bool:
        return any(part is not None for part in (self.train_set, self.val_set, self.test_set))

    def missing(self, part: str) -> str:
        """Returns the error message for a missing ``training`` or ``validation`` part, with what to do."""
        raise NotImplementedError

    def _ready(self, data: Dataset[Any] | None, part: str) -> Dataset[Any]:
        if data is None and self.is_set_up:
            raise DataError(self.missing(part))
        return super()._ready(data, part)
