"""The user's own pictures with masks."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mobilemamba.data.masks import ClassList, decode_mask, read_class_list
from mobilemamba.data.paired_pictures import PairedPictures
from mobilemamba.errors import DataError

_LOOKED_AT = 20


class SegmentationFolder(PairedPictures):
    """Pictures in ``root/images/`` and masks in ``root/masks/``, both with or without subfolders ``train`` and ``val``.

    ``root/classes.txt`` names the classes, one per line. A mask is a PNG, BMP or TIFF whose pixels are line numbers,
    from 0; or it is in colours, and each line gives one after the name: ``traffic light 250 170 30``. A line with the
    name ``ignored`` is not a class: its pixels do not count.

    Args:
        class_list: File with the classes; None for ``classes.txt`` in ``root``.
        ignore: Another number in the masks for pixels that do not count; null for none.
        **options: Arguments of :class:`~mobilemamba.data.paired_pictures.PairedPictures`.
    """

    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **PairedPictures.LIMITS,
        "ignore": (0, 65535, "0 to 65535, a number in the masks, or null"),
    }

    def __init__(self, root: str, class_list: str | None = None, ignore: int | None = 255, **options: Any) -> None:
        super().__init__(root, **options)
        self.class_list = class_list
        self.ignore = ignore

    @cached_property
    def classes(self) -> ClassList:
        self.check_arguments()
        return read_class_list(Path(self.class_list or Path(self.root, "classes.txt")), self.ignore)

    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures once, and checks that some masks are not just black and white."""
        if not self.is_set_up and self.ignore == 255:
            self._refuse_white_classes()
        super().setup(stage)

    def _refuse_white_classes(self) -> None:
        """Raises an error for masks of 0 and 255 if 255 is ignored, as only the background would be left."""
        masks = [mask for _, mask in self.pairs.train or self.pairs.val]
        for mask in masks[:: max(1, len(masks) // _LOOKED_AT)]:
            try:
                labels = np.unique(decode_mask(mask, self.classes))
            except DataError:
                return  # reported when the mask is read with its picture
            if set(labels.tolist()) != {0, 255}:
                return
        if masks:
            first, second = self.classes.names[:2]
            raise DataError(
                f"the masks in {self.root} seem to be of 0 and 255 alone, and 255 is ignored: if it is a class, give "
                f"data.ignore=null and colours in the class list, e.g. '{first} 0 0 0' and '{second} 255 255 255'"
            )
