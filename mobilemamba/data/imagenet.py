"""ImageNet-1k in its usual layouts: class folders, a flat validation folder with a list of labels, or tar files."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mobilemamba.data.classification_pictures import ClassificationPictures, Sources
from mobilemamba.data.classification_transforms import Augmentation
from mobilemamba.data.folders import describe_left_out, list_classes, scan_folder
from mobilemamba.data.imagenet_labels import find_val_labels, imagenet_classes, read_val_labels
from mobilemamba.data.labelled_pictures import FileSource
from mobilemamba.data.layout import find_parts, require_folder
from mobilemamba.data.shards import ShardSource, find_shards
from mobilemamba.errors import DataError

_PARTS = {"train": "train", "val": "val|validation"}  # regular expressions for the names of tar files
#: The paper's augmentation.
PAPERS = Augmentation(scale=(0.08, 1.0), color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)


class ImageNet(ClassificationPictures):
    """ImageNet-1k, or a part of it, with the augmentation of the paper's recipe.

    The labels are the 1,000 classes in the usual order, even if some are missing. Each part, ``train`` and ``val``, is
    found in ``root`` in one of these layouts:

    - ``train/<wnid>/*.JPEG``, ``val/<wnid>/*.JPEG``;
    - ``val/*.JPEG`` with a file of labels (see ``val_labels``);
    - numbered, uncompressed tar files as written by WebDataset, e.g. ``imagenet1k-train-0000.tar``, ``val-000.tar``:
      with ``key.jpg`` and ``key.cls``, a number from 0, or with the class's WordNet id as a folder. Their index is
      stored beside them as ``mobilemamba-train-index.json``.

    The same pictures give the same batches in each layout. A set with only ``val`` can be validated but not trained on.
    As in the release, pictures are not rotated by their EXIF orientation by default.

    Args:
        val_labels: File with the labels of a flat ``val`` folder: Kaggle's ``LOC_val_solution.csv``; lines with a
            picture's name and its WordNet id or its number from 0; or lines with only WordNet ids, in the order of the
            names. None searches for it in ``root``.
        **options: Arguments of :class:`ClassificationPictures`.

    Attributes:
        wnids: The WordNet ids of the classes, in the order of the labels.
    """

    title: ClassVar[str] = "ImageNet-1k"
    upright = False

    def __init__(
        self,
        root: str,
        val_labels: str | None = None,
        augmentation: Augmentation = PAPERS,
        **options: Any,
    ) -> None:
        super().__init__(root, augmentation=augmentation, **options)
        self.val_labels = val_labels
        self.wnids, self.class_names = imagenet_classes()

    @cached_property
    def sources(self) -> Sources:
        parts = find_parts(require_folder(self.root, "train/<wnid>/ and val/<wnid>/"))
        left_out: Counter[str] = Counter()
        train, val = (self._source(part, parts.get(part), left_out) for part in _PARTS)
        if train is None and val is None:
            raise DataError(
                f"data.root {self.root} holds no ImageNet: expected the folders train and val, or tar files such as "
                "train-0000.tar and val-0000.tar"
            )
        if line := describe_left_out(left_out):
            self.notes.append(line)
        return Sources(train, val)

    def prepare_data(self) -> None:
        """Indexes tar files in one process per machine; the other processes then read the index."""
        self.check_arguments()
        _ = self.sources

    def _source(self, part: str, folder: Path | None, left_out: Counter[str]) -> FileSource | ShardSource | None:
        root = Path(self.root)
        shards = find_shards(root, _PARTS[part])
        labels = {wnid: label for label, wnid in enumerate(self.wnids)}
        if shards and folder is not None:
            raise DataError(f"{root} holds both {folder.name}/ and {shards[0].name}: move one of them elsewhere")
        if shards:
            source = ShardSource(shards, labels, f"mobilemamba-{part}-index.json")
            if not len(source.labels):
                raise DataError(f"{shards[0]} and the other {part} files hold no pictures (key.jpg, .png and the like)")
            return source
        if folder is None:
            return None
        flat, folders = scan_folder(folder, left_out)
        if flat and folders:
            raise DataError(
                f"{folder} holds both pictures and folders: keep them in class folders, or all of them flat"
            )
        if flat and part == "val":
            file = Path(self.val_labels) if self.val_labels is not None else find_val_labels(root)
            found = read_val_labels(file, [Path(path).name for path in flat])
            # Sorted by class, as in the other layouts.
            return FileSource([(path, label) for label, path in sorted(zip(found, flat, strict=True))])
        other = (
            "is none of the 1,000 classes of ImageNet-1k: name class folders by WordNet ids such as n01440764, or use "
            "ImageFolder for other classes"
        )
        return FileSource(list_classes(folder, labels, every_class=True, other_classes=other, left_out=left_out))


def holds_imagenet(root: str | Path) -> bool:
    """Whether a folder looks like ImageNet in one of its layouts, rather than like pictures of other classes."""
    wnids = set(imagenet_classes()[0])
    if not Path(root).is_dir():
        return False
    if any(find_shards(Path(root), names) for names in _PARTS.values()):
        return True
    for part, folder in find_parts(Path(root)).items():
        pictures, folders = scan_folder(folder)
        if (part == "val" and pictures and not folders) or any(Path(path).name in wnids for path in folders):
            return True
    return False
