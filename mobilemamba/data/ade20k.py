"""ADE20K with the 150 classes of the scene parsing challenge (Zhou et al., CVPR 2017)."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from mobilemamba.data.ade20k_classes import CLASSES
from mobilemamba.data.layout import find_parts
from mobilemamba.data.masks import IGNORED_NAME, ClassList, class_list
from mobilemamba.data.paired_pictures import PairedPictures


class ADE20K(PairedPictures):
    """ADEChallengeData2016: ``root/images/{training,validation}/`` and ``root/annotations/{training,validation}/``.

    20,210 training and 2,000 validation pictures of scenes, in the layout of the official download. In the annotations,
    0 means no class and does not count; 1 to 150 are the classes. Augmentation and scaling are those of the paper.

    Args:
        **options: Arguments of :class:`~mobilemamba.data.paired_pictures.PairedPictures`.
    """

    title: ClassVar[str] = "ADE20K"
    masks_folder: ClassVar[str] = "annotations"
    masks_may_be_empty: ClassVar[bool] = True
    antialias = False

    @classmethod
    def is_root(cls, root: Path) -> bool:
        """Whether a folder looks like a ``root``, with parts in ``annotations/``, as other data sets use that name."""
        return super().is_root(root) and bool(find_parts(root / cls.masks_folder))

    @cached_property
    def classes(self) -> ClassList:
        return class_list([(IGNORED_NAME, None), *((name, None) for name in CLASSES)], ignore=255)
