"""The user's own labelled pictures, in one folder per class."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mobilemamba.data.base import ABOVE_0, BELOW_1
from mobilemamba.data.classification_pictures import ClassificationPictures, Sources
from mobilemamba.data.folders import class_folders, describe_left_out, few, list_classes, scan_folder
from mobilemamba.data.labelled_pictures import FileSource
from mobilemamba.data.layout import Layout, find_layout, refuse_nested, require_folder, spread_share
from mobilemamba.errors import ConfigError
from mobilemamba.text import printable

Sample = tuple[str, int]  # the picture's path, its label


class ImageFolder(ClassificationPictures):
    """Pictures in ``root/train/<class>/`` and ``root/val/<class>/``; or, without ``train``, in ``root/<class>/``.

    Without ``val``, a fraction of each class is set aside for validation: always the same pictures, evenly spaced in
    the sorted file names, whatever the seed. A set with only ``val`` can be validated but not trained on.
    ``root/test/<class>/`` is for the command ``test``. The folders may also be named training, valid, validation and
    testing, in upper or lower case. The default augmentation is a mild one for fine-tuning; :class:`ImageNet` has the
    paper's. By default, pictures are rotated by their EXIF orientation.

    Args:
        val_fraction: Fraction of each class for validation if there is no ``val`` folder, above 0 and below 1.
        classes: Names of the class folders in the order of the labels, some of which may be missing; None for the
            classes of the weights to validate or test, or else the existing folders, sorted.
        **options: Arguments of :class:`ClassificationPictures`.
    """

    LIMITS: ClassVar[dict[str, tuple[float, float, str]]] = {
        **ClassificationPictures.LIMITS,
        "val_fraction": (ABOVE_0, BELOW_1, "a share above 0 and below 1"),
    }

    def __init__(self, root: str, val_fraction: float = 0.2, classes: list[str] | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.val_fraction = val_fraction
        self.classes = classes

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # found when asked for
        """``classes``, or if None the sorted names of the class folders, which are read at first use.

        Folder names are made :func:`~mobilemamba.text.printable`, as they go into YAML, cards and plots.
        """
        if self.classes is not None:
            return tuple(self.classes)
        folder = next(part for part in self.layout[:3] if part is not None)
        classes = class_folders(folder)
        refuse_nested(folder, classes)
        return tuple(map(printable, classes))

    @cached_property
    def layout(self) -> Layout:
        """The folders of the parts.

        Raises:
            DataError: If ``root`` is no folder, or its subfolders are ambiguous.
        """
        return find_layout(require_folder(self.root, "train/<class>/ or <class>/"))

    @cached_property
    def sources(self) -> Sources:
        self.notes += self.layout.notes
        left_out: Counter[str] = Counter()
        train = self._list("train", self.layout.train, left_out)
        val = self._list("val", self.layout.val, left_out)
        test = self._list("test", self.layout.test, left_out)
        if train and self.layout.val is None:
            train, val = _set_aside(train, self.val_fraction, self.num_classes)
        if line := describe_left_out(left_out):
            self.notes.append(line)
        return Sources(*(FileSource(part) if part else None for part in (train, val, test)))

    def check_arguments(self) -> None:
        super().check_arguments()
        if self.classes is not None and (not self.classes or len(set(self.classes)) < len(self.classes)):
            raise ConfigError(
                f"data.classes [{few(self.classes)}] is impossible: name each class once, or give null for the folders"
            )

    def missing(self, part: str) -> str:
        if part == "validation" and self.layout.train == Path(self.root):  # a folder val beside classes would not help
            root = printable(self.root)
            return (
                f"{root} has a single picture of each class, and so none to set aside for validation: add more, or put "
                f"some into {root}/train/<class>/ and others into {root}/val/<class>/"
            )
        return super().missing(part)

    def _list(self, part: str, folder: Path | None, left_out: Counter[str]) -> list[Sample]:
        if folder is None:
            return []
        labels = {printable(name): label for label, name in enumerate(self.class_names)}
        if not any(printable(Path(path).name) in labels for path in scan_folder(folder)[1]):
            if part == "test":
                self.notes.append(f"not used: {printable(folder.name)}/, which has none of the classes' folders")
                return []
            refuse_nested(folder, class_folders(folder))
        other = (
            f"is none of the {len(labels)} classes ({few(self.class_names)}) of the "
            f"{'training pictures' if not self.classes else 'weights or of data.classes'}: rename it or remove it"
        )
        return list_classes(folder, labels, every_class=part == "train", other_classes=other, left_out=left_out)


def _set_aside(samples: list[Sample], fraction: float, classes: int) -> tuple[list[Sample], list[Sample]]:
    """Splits into training and validation pictures, evenly spaced in each class, with at least one of each in both.

    The only picture of a class stays in training.
    """
    train: list[Sample] = []
    val: list[Sample] = []
    of_class: list[list[Sample]] = [[] for _ in range(classes)]
    for sample in samples:
        of_class[sample[1]].append(sample)
    for own in of_class:
        chosen = spread_share(len(own), fraction)
        for position, sample in enumerate(own):
            (val if position in chosen else train).append(sample)
    return train, val
