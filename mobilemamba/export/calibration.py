"""Pictures for the calibration of int8, and how much int8 changes the answers to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilemamba.dense import Detector
from mobilemamba.dense.candidates import input_size, place_top_left
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.models.card import ModelCard
from mobilemamba.models.runtime import scaled
from mobilemamba.text import printable

#: The most pictures, spread evenly over the folder's; more change little and take long.
MOST = 512
_BATCH = 16
#: Probability from which on a detector's candidate is likely to be reported.
SURE = 0.3


@dataclass(frozen=True)
class Calibration:
    """Prepared pictures for a calibration."""

    pictures: Tensor  # (B, C, H, W) float32
    labels: Tensor | None  # (B,) int64, if folders are named after the network's classes; else None


@dataclass(frozen=True)
class Agreement:
    """How far an exported network's answers to pictures agree with the original's."""

    pictures: int
    same: float | None  # share of the pictures, or of their pixels, with the same class, in %; None for a detector
    top1: tuple[float, float] | None = None  # the original's and the exported network's, in %, if labels are known
    pixels: bool = False  # whether classes are those of pixels
    off: tuple[float, float] | None = None  # change of a detector's probabilities: mean of sure ones, largest of all


def read_calibration(folder: Path, card: ModelCard, network: nn.Module) -> Calibration:
    """Reads the pictures of a folder, at most :data:`MOST`, prepared for an export of a network.

    Args:
        folder: Folder with pictures, directly or in its subfolders.
        card: Card that says how the network's pictures are prepared.
        network: The network, whose padding is used for pictures that keep their aspect ratio.

    Raises:
        ConfigError: If there is no such folder.
        DataError: If there are no pictures in it, or one cannot be read.
    """
    shown = f"--calibration {printable(folder)}"
    from mobilemamba.data.folders import describe_left_out, list_pictures, why_no_folder  # slow to import
    from mobilemamba.models.predictor import predictor_of

    if reason := why_no_folder(folder):
        raise ConfigError(f"{shown}: {reason}; expected a folder of pictures")
    left_out: Counter[str] = Counter()
    paths = [Path(path) for path in list_pictures(folder, left_out)]
    if not paths:
        line = describe_left_out(left_out)
        raise DataError(f"{shown}: no pictures in it{f' ({line})' if line else ''}; give some like those to come")
    paths = paths[:: -(-len(paths) // MOST)]
    predictor = predictor_of(nn.Identity(), card, torch.device("cpu"))
    height, width = input_size(network, card.preprocessing)
    pictures = torch.zeros(len(paths), card.in_chans, height, width)
    for place, path in zip(pictures, paths, strict=True):
        picture = predictor.prepare(predictor.read(path))[None]
        if not isinstance(network, Detector):
            picture = scaled(picture, (height, width))
        place_top_left(picture, place)
    classes = [path.parent.name for path in paths]
    known = {name: index for index, name in enumerate(card.class_names)}
    labelled = known and all(printable(name) in known for name in classes)
    return Calibration(pictures, torch.tensor([known[printable(name)] for name in classes]) if labelled else None)


def whole_batches(pictures: Tensor, batch: int) -> Iterator[Tensor]:
    """Yields pictures in batches of one size; the last batch is filled up with the first pictures."""
    for start in range(0, len(pictures), batch):
        yield pictures[torch.arange(start, start + batch) % len(pictures)]


@torch.no_grad()
def compare(network: nn.Module, exported: nn.Module, calibration: Calibration, answer: str) -> Agreement:
    """Compares an exported network's answers to pictures with the original's.

    Args:
        network: The original.
        exported: The exported network.
        calibration: The pictures.
        answer: Kind of both outputs: ``candidates`` of a detector, or numbers per class of a picture or pixel.
    """
    pictures = calibration.pictures
    pairs = ((network(batch), exported(batch)) for batch in pictures.split(_BATCH))
    if answer == "candidates":
        sure, total, largest = 0, 0.0, 0.0
        for theirs, ours in pairs:
            differences = (ours - theirs)[..., 4:].abs()
            chosen = differences[theirs[..., 4:] >= SURE]
            sure, total = sure + len(chosen), total + float(chosen.sum())
            largest = max(largest, float(differences.max()))
        return Agreement(len(pictures), None, off=(total / sure if sure else math.nan, largest))
    same, right, labels = 0.0, torch.zeros(2), calibration.labels
    pixels = False
    for batch, (theirs, ours) in enumerate(pairs):
        answers = theirs.argmax(1), ours.argmax(1)
        pixels = answers[0].dim() > 1
        same += float((answers[0] == answers[1]).float().mean()) * len(theirs)
        if labels is not None and not pixels:
            expected = labels[batch * _BATCH :][: len(theirs)]
            right += torch.stack([(answer == expected).sum() for answer in answers])
    shares = (100 * right / len(pictures)).tolist()
    top1 = None if labels is None or pixels else (shares[0], shares[1])
    return Agreement(len(pictures), 100 * same / len(pictures), top1, pixels)
