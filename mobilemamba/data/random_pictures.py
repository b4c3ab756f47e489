"""Random pictures of a folder or of the sample, for tools that need only a few without labels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mobilemamba.data.folders import list_pictures, why_no_folder
from mobilemamba.data.layout import find_parts
from mobilemamba.data.pictures import read_picture
from mobilemamba.errors import DataError
from mobilemamba.text import printable


def random_pictures(
    folder: Path | None, number: int, seed: int, skipped: Callable[[DataError], object]
) -> Iterator[Image.Image]:
    """Yields random pictures in RGB, read one by one; unreadable ones are replaced by others.

    Args:
        folder: Folder of pictures, or of folders of pictures; if it has a validation part, that is used. None for the
            sample's validation part.
        number: Largest number of pictures.
        seed: Determines the selection.
        skipped: Called with the error of each unreadable picture.

    Raises:
        DataError: If there is no such folder, or it contains no readable picture.
    """
    total, read = _sample() if folder is None else _pictures_in(folder)
    given = 0
    for index in np.random.default_rng(seed).permutation(total):
        if given == number:
            return
        try:
            picture = read(index)
        except DataError as error:
            skipped(error)
            continue
        given += 1
        yield picture
    if not given:
        raise DataError(f"no picture of the {total:,} in {printable(folder)} can be read: repair them or give others")


def _sample() -> tuple[int, Callable[[int], Image.Image]]:
    from mobilemamba.data.fashion_mnist import read_sample, split_mask  # imports lightning; not needed for a folder

    grey, labels = read_sample()
    grey = grey[split_mask(labels)]
    return len(grey), lambda index: Image.fromarray(grey[index].numpy()).convert("RGB")


def _pictures_in(folder: Path) -> tuple[int, Callable[[int], Image.Image]]:
    if reason := why_no_folder(folder):
        raise DataError(f"{printable(folder)}: {reason}; give a folder of pictures")
    paths = list_pictures(find_parts(folder).get("val", folder))
    if not paths:
        raise DataError(f"no pictures in {printable(folder)}: give a folder with pictures, or with folders of such")
    return len(paths), lambda index: read_picture(paths[index])
