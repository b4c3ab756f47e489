"""Pictures and mask files in folders of the same structure."""

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from mobilemamba.data.base import ABOVE_0
from mobilemamba.data.batches import IGNORED_PIXEL
from mobilemamba.data.blobs import Texts
from mobilemamba.data.folders import describe_left_out, few, list_pictures, scan_folder
from mobilemamba.data.layout import PART_NAMES, disguised_parts, find_parts, require_folder, spread_share
from mobilemamba.data.masks import ClassList, decode_mask
from mobilemamba.data.picture_dataset import PictureDataset
from mobilemamba.data.picture_files import LIMITS_OF_CHANGES, PictureFiles
from mobilemamba.data.pictures import EXTENSIONS, decode_picture
from mobilemamba.data.segmentation import SegmentationDataModule
from mobilemamba.data.segmentation_transforms import SegmentationAugmentation, eval_transform, train_transform
from mobilemamba.drawing import Colour, distinct_colours
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.text import printable

PairOfFiles = tuple[str, str]  # the paths of a picture and of its mask


class Pairs(NamedTuple):
    """The files of each part; empty if it does not exist."""

    train: list[PairOfFiles]
    val: list[PairOfFiles]
    test: list[PairOfFiles]


class PairSet(PictureDataset):
    """Pictures with their masks: (3, H, W) float32 and (H', W') int64.

    Args:
        pairs: Files of the pictures and masks.
        classes: Classes of the masks.
        transform: Transform of the picture alone, while its mask stays unchanged; with a seed, of both.
        empty: Whether masks may consist only of ignored pixels.
        **options: Arguments of :class:`~mobilemamba.data.picture_dataset.PictureDataset`.
    """

    def __init__(
        self,
        pairs: list[PairOfFiles],
        classes: ClassList,
        transform: Callable[..., Any],
        *,
        empty: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.pictures, self.masks = (Texts(pair[part] for pair in pairs) for part in (0, 1))
        self.classes, self.transform, self.empty = classes, transform, empty

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return self.pictures[index]

    def prepared(self, picture: Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(picture), target.long()

    def changed(self, picture: Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(picture, tv_tensors.Mask(target))

    def read(self, index: int) -> tuple[Image.Image, Tensor]:
        picture = decode_picture(self.pictures[index], upright=self.upright)
        try:
            mask_HW = decode_mask(self.masks[index], self.classes)
            if mask_HW.shape != picture.size[::-1]:
                turned = mask_HW.shape == picture.size and self.upright
                raise DataError(
                    f"{mask_HW.shape[1]} x {mask_HW.shape[0]} pixels for a picture of {picture.size[0]} x "
                    f"{picture.size[1]}{', turned; data.upright=false leaves pictures as stored' if turned else ''}"
                )
            if not self.empty and (mask_HW == IGNORED_PIXEL).all():
                raise DataError("ignored pixels alone")
        except DataError as error:
            raise DataError(f"its mask {printable(self.masks[index])}: {error}") from error
        return picture, torch.from_numpy(mask_HW)


class PairedPictures(PictureFiles, SegmentationDataModule):
    """Base class of data modules with pictures and masks in two folders of the same structure.

    Either each of the two folders contains folders of the parts, or the folder of each part contains these two. The
    parts may be named train or training, and val, valid or validation; test and testing are for the command ``test``. A
    mask has its picture's name with any extension. Without parts, a fraction of the pictures is set aside for
    validation.

    Training pictures are scaled and cropped to ``img_size``. Validation pictures are not cropped: each is a batch by
    itself, scaled so that its shorter side is that of ``img_size``, and compared with its mask in the mask's own size.

    Args:
        root: Folder of the data set.
        img_size: Side of training pictures in pixels, or (height, width); None for 512.
        batch_size: Training pictures per batch and process.
        val_fraction: Fraction of the training pictures used for validation if there is no folder for it, above 0 and
            below 1; always the same pictures, evenly spaced in the sorted names.
        augmentation: Random changes of training pictures.
        **options: Arguments of :class:`~mobilemamba.data.picture_files.PictureFiles`.

    Raises:
        DataError: From ``name`` and :meth:`setup`, if ``root`` does not contain such a data set; from the loaders, if a
            pair cannot be used.
    """

    masks_folder: ClassVar[str] = "masks"
    masks_may_be_empty: ClassVar[bool] = False
    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **PictureFiles.LIMITS,
        **LIMITS_OF_CHANGES,
        "augmentation.scale": (ABOVE_0, inf, "two numbers above 0, the least first"),
        "augmentation.max_share": (ABOVE_0, 1, "a share above 0, at most 1"),
    }

    def __init__(
        self,
        root: str,
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 8,
        val_fraction: float = 0.2,
        augmentation: SegmentationAugmentation = SegmentationAugmentation(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(root, img_size=512 if img_size is None else img_size, batch_size=batch_size, **options)
        self.val_fraction = val_fraction
        self.augmentation = augmentation

    @classmethod
    def is_root(cls, root: Path) -> bool:
        """Whether a folder looks like a ``root`` rather than a folder of classes with pictures."""
        folders = [root, *find_parts(root).values()]
        return any(all((folder / name).is_dir() for name in ("images", cls.masks_folder)) for folder in folders)

    @property
    def evaluation_batch_size(self) -> int:
        return 1

    @cached_property
    def classes(self) -> ClassList:
        """The classes of the numbers and colours in masks.

        Raises:
            DataError: If they are not defined.
        """
        raise NotImplementedError  # each layout of files lists its own

    @cached_property
    def pairs(self) -> Pairs:
        """The files of each part.

        Raises:
            DataError: If ``root`` does not contain such a data set.
        """
        root = require_folder(self.root, f"images/ and {self.masks_folder}/")
        given, left_out = self._folders(root), Counter[str]()
        found = {part: self._list(*folders, left_out) for part, folders in given.items()}
        if line := describe_left_out(left_out):
            self.notes.append(line)
        if "train" in found and "val" not in found:
            chosen = spread_share(len(found["train"]), self.val_fraction)
            found["val"] = [pair for n, pair in enumerate(found["train"]) if n in chosen]
            found["train"] = [pair for n, pair in enumerate(found["train"]) if n not in chosen]
        return Pairs(*(found.get(part, []) for part in PART_NAMES))

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # found when asked for
        return self.classes.names

    @cached_property
    def palette(self) -> tuple[Colour, ...]:  # type: ignore[override]  # found when asked for
        """The colours of the class list, or if it has none, distinct colours."""
        return self.classes.colours or distinct_colours(self.num_classes)

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # found when asked for
        """Name of the data set, see :meth:`named`."""
        return self.named([len(part) for part in self.pairs])

    def check_arguments(self) -> None:
        super().check_arguments()
        low, high = self.augmentation.scale
        if low > high:
            raise ConfigError(f"data.augmentation.scale [{low}, {high}] is impossible: give the least first")

    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures once, and prints which files are not used."""
        self.check_arguments()
        if self.is_set_up:
            return
        pairs = self.pairs
        self.print_notes()
        how, options = self.transform_options, self.set_options
        options["empty"] = self.masks_may_be_empty
        if pairs.train:
            change = train_transform(augmentation=self.augmentation, **how)
            self.train_set = PairSet(pairs.train, self.classes, change, seed=self.seed, **options)
        if pairs.val:
            self.val_set = PairSet(pairs.val, self.classes, eval_transform(**how), **options)
        if pairs.test:
            self.test_set = PairSet(pairs.test, self.classes, eval_transform(**how), **options)

    def missing(self, part: str) -> str:
        where = Path(self.root, "images", {"training": "train", "validation": "val"}[part])
        return f"{printable(self.root)} has no {part} pictures: put them into {printable(where)}"

    def _folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """Returns the folders of pictures and masks of each part; without parts, all are for training."""
        images, masks = root / "images", root / self.masks_folder
        if not images.is_dir() and (parts := find_parts(root)):
            return {part: (folder / "images", folder / self.masks_folder) for part, folder in parts.items()}
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(
                    f"{printable(root)} has no folder {folder.name}/: put pictures into images/ and their masks, by "
                    f"the same names, into {self.masks_folder}/"
                )
        parts, of_masks = find_parts(images), find_parts(masks)
        if not (parts or of_masks):
            if alike := disguised_parts(images):
                raise DataError(f"{few(alike)} look like parts of a data set: name them train, val and test")
            return {"train": (images, masks)}
        pictures, folders = scan_folder(images)
        if others := [path for path in [*folders, *pictures] if Path(path) not in parts.values()]:
            self.notes.append(f"not used: {few(others)} beside the folders of the parts")
        name_of = {part: folder.name for part, folder in (of_masks | parts).items()}
        return {
            part: (parts.get(part, images / name), of_masks.get(part, masks / name)) for part, name in name_of.items()
        }

    def _list(self, images: Path, masks: Path, left_out: Counter[str]) -> list[PairOfFiles]:
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(f"{printable(folder)} does not exist: put the pictures or masks of this part there")
        mask_of: dict[str, str] = {}
        for mask in list_pictures(masks, left_out):
            if mask_of.setdefault(_stem(mask, masks), mask) != mask:
                raise DataError(f"{printable(mask)} has the name of another mask, but for the ending: remove one")
        pictures = {picture: _stem(picture, images) for picture in list_pictures(images, left_out)}
        if missing := [picture for picture, stem in pictures.items() if stem not in mask_of]:
            example = Path(masks, pictures[missing[0]] + ".png")
            raise DataError(
                f"{len(missing):,} of {len(pictures):,} pictures have no mask, the first is {printable(missing[0])}: "
                f"put it there as {printable(example)}, or remove the picture"
            )
        if not pictures:
            raise DataError(f"{printable(images)} holds no pictures ({' '.join(EXTENSIONS)}): add some or remove it")
        if spare := sorted(mask_of.keys() - set(pictures.values())):
            count = f"{len(spare):,} mask{'s' if len(spare) > 1 else ''}"
            self.notes.append(f"not used: {count} in {printable(masks)} without a picture ({few(spare)})")
        return [(picture, mask_of[stem]) for picture, stem in pictures.items()]


def _stem(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder).with_suffix(""))
