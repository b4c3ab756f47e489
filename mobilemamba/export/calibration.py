"""Pictures that int8 is fitted by, and what it costs in answers to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilemamba.errors import ConfigError, DataError
from mobilemamba.models.card import ModelCard
from mobilemamba.text import printable

#: Most pictures, evenly spread over the folder's; more change little and take long.
MOST = 512
_BATCH = 16


@dataclass(frozen=True)
class Calibration:
    """Prepared pictures."""

    pictures: Tensor  # (B, C, H, W) float32
    labels: Tensor | None  # (B,) int64, of pictures in folders of the network's classes; else None


@dataclass(frozen=True)
class Agreement:
    """How two networks answer the same pictures."""

    pictures: int
    same: float  # share of the pictures, or of their pixels, with the same class, in %
    top1: tuple[float, float] | None  # the original's and the exported one's, in %, where labels are known


def read_calibration(folder: Path, card: ModelCard) -> Calibration:
    """The pictures in a folder, :data:`MOST` at most, as a card's network takes them.

    Raises:
        ConfigError: If there is no such folder.
        DataError: If there are no pictures in it, or one cannot be read.
    """
    shown = f"--calibration {printable(folder)}"
    from mobilemamba.data.folders import describe_left_out, list_pictures, why_no_folder  # loads what reads pictures
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
    pictures = torch.stack([predictor.prepare(predictor.read(path)) for path in paths])
    classes = [path.parent.name for path in paths]
    known = {name: index for index, name in enumerate(card.class_names)}
    labelled = known and all(printable(name) in known for name in classes)
    return Calibration(pictures, torch.tensor([known[printable(name)] for name in classes]) if labelled else None)


@torch.no_grad()
def compare(network: nn.Module, exported: nn.Module, calibration: Calibration) -> Agreement:
    """How an exported network answers the pictures, beside the original; by classes or by classes of pixels."""
    theirs, ours = (
        torch.cat([one(batch).argmax(1) for batch in calibration.pictures.split(_BATCH)]) for one in (network, exported)
    )
    labels, top1 = calibration.labels, None
    if labels is not None and theirs.shape == labels.shape:
        top1 = _percent(theirs == labels), _percent(ours == labels)
    return Agreement(len(theirs), _percent(theirs == ours), top1)


def _percent(of: Tensor) -> float:
    return 100 * of.float().mean().item()
