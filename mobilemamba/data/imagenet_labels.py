"""The classes of ImageNet-1k, and the files with the labels of its validation pictures."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from timm.data import ImageNetInfo

from mobilemamba.data.pictures import EXTENSIONS
from mobilemamba.errors import DataError

_WELL_KNOWN = (
    "LOC_val_solution.csv",
    "val.txt",
    "val_labels.txt",
    "val_map.txt",
    "synset_labels.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "../../../LOC_val_solution.csv",  # relative to ILSVRC/Data/CLS-LOC, the folder of pictures in Kaggle's archive
)
_WNID = re.compile(r"n\d{8}")


@cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the WordNet ids of the 1,000 classes in the order of the labels, and a unique name for each."""
    info = ImageNetInfo()
    wnids = tuple(info.label_names())
    words = info.label_descriptions()
    first = [word.split(",")[0] for word in words]
    for candidates in (words, [f"{word} ({wnid})" for word, wnid in zip(words, wnids, strict=True)]):
        times = Counter(first)  # some names occur twice: crane, maillot
        first = [name if times[name] == 1 else longer for name, longer in zip(first, candidates, strict=True)]
    return wnids, tuple(first)


def find_val_labels(root: Path) -> Path:
    """Finds the file with the labels of ``root/val`` among its usual names and places.

    Raises:
        DataError: If there is none.
    """
    for name in _WELL_KNOWN:
        if (root / name).is_file():
            return root / name
    raise DataError(
        f"{root / 'val'} has no class folders and {root} no file with the labels of its pictures: give one as "
        f"data.val_labels, or put it there as {_WELL_KNOWN[0]} or {_WELL_KNOWN[1]}"
    )


def read_val_labels(file: Path, pictures: Sequence[str]) -> list[int]:
    """Returns the label of each picture, 0 to 999.

    The format of ``file`` is detected from its content: Kaggle's CSV; or a picture's name and its class in each line,
    as a WordNet id or a number from 0; or one WordNet id per line, in the order of the pictures' names.

    Args:
        file: File with the labels.
        pictures: Sorted file names of the pictures.

    Raises:
        DataError: If the file has another format or does not match the pictures.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a text of labels ({error}): give another data.val_labels") from error
    while lines and not lines[-1]:
        lines.pop()
    if lines and lines[0].startswith("ImageId,"):
        rows = [
            (row[0], row[1].split()[0]) if len(row) == 2 and row[1].strip() else None for row in csv.reader(lines[1:])
        ]
        return _by_name(file, rows, pictures, first_line=2)
    if lines and len(_words(lines[0])) == 2:
        parts = [_words(line) for line in lines]
        return _by_name(file, [(row[0], row[1]) if len(row) == 2 else None for row in parts], pictures, first_line=1)
    if len(lines) != len(pictures):
        raise DataError(f"{file} has {len(lines):,} lines for {len(pictures):,} pictures: give the file that is theirs")
    if lines and lines[0].isdecimal():
        raise DataError(
            f"{file} holds the development kit's numbers of the classes, which its meta.mat explains: "
            "give as data.val_labels a file of lines such as 'ILSVRC2012_val_00000001.JPEG n01751748'"
        )
    return [_label(file, number, line) for number, line in enumerate(lines, 1)]


def _by_name(
    file: Path, rows: Sequence[tuple[str, str] | None], pictures: Sequence[str], *, first_line: int
) -> list[int]:
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, first_line):
        if row is None:
            raise DataError(f"{file}, line {number}: expected a picture's name and its class")
        label = _label(file, number, row[1])
        if labels.setdefault(_stem(row[0]), label) != label:
            raise DataError(f"{file}, line {number}: {row[0]} has had another class before")
    missing = [name for name in pictures if _stem(name) not in labels]
    if missing:
        raise DataError(
            f"{file} has no label for {len(missing):,} of {len(pictures):,} pictures, the first is {missing[0]}: give "
            "the file that is theirs"
        )
    return [labels[_stem(name)] for name in pictures]


def _words(line: str) -> list[str]:
    return line.replace(",", " ").split()


def _stem(name: str) -> str:
    path = PurePath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def _label(file: Path, line: int, text: str) -> int:
    wnids, _ = imagenet_classes()
    if _WNID.fullmatch(text):
        if text not in _label_of():
            raise DataError(f"{file}, line {line}: {text} is none of the 1,000 classes of ImageNet-1k")
        return _label_of()[text]
    if text.isdecimal() and int(text) < len(wnids):
        return int(text)
    raise DataError(f"{file}, line {line}: '{text}' is no class: expected a WordNet id or a number from 0 to 999")


@cache
def _label_of() -> dict[str, int]:
    return {wnid: label for label, wnid in enumerate(imagenet_classes()[0])}
